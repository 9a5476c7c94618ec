"""Transforms of algorithms: compression, robust merging, attacks, privacy, sequence."""
