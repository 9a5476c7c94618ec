"""The cost of a round on devices: seconds and joules."""
