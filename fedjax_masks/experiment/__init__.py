"""One experiment on disk: configuration, loop, run directory, checkpoints, sweeps."""
