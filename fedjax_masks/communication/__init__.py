"""What crosses the wire: payloads, their size, codecs and entropy coding."""
