"""Communication between clients and the server: payloads, their size, codecs and entropy coding."""
