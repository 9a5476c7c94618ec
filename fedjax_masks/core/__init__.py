"""The contract of an algorithm, and the pure functions that algorithms are made of."""
