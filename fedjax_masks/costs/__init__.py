"""Seconds and joules of rounds on devices."""
