"""The clock beside published logs of Raspberry Pi 4: ``python experiments/calibrate_rpi4.py``.

Wu et al. 2024, arXiv 2304.05495: ResNet12 on CIFAR-10, two devices, 10 rounds. Three constants are
chosen so that the clock gives the logged seconds: the rate of the link, the server's seconds per
round, and the FLOPs of a forward pass of the whole net, whose shape is not published; with as many logs
as constants that shows that the clock can tell these runs, not that it foretells them. Bytes are foretold:
500 images per device, in batches of 10, of which the first convolution (1,920 parameters, pooled)
makes 16,384 activations each; only the size of the whole net is taken from the log of the classic run.
"""

import numpy as np

from fedjax_masks.claims.rpi4 import BATCH, DEVICES, IMAGES, LOGGED, MIB, ROUNDS, bytes_per_round
from fedjax_masks.costs.devices import DEVICES as PROFILES

LATENCY = 0.05
FORWARD_FLOPS = 2 * 32 * 32 * 27 * 64  # of the device's convolution, per image
WRITTEN = 4 * 32 * 32 * 64  # bytes that it writes, per image


def main() -> None:
    """Calibrates, and prints the logs beside the clock."""
    device, sizes = PROFILES["rpi4"], bytes_per_round()
    batches = IMAGES // BATCH
    # Seconds of a round: 8 bytes / rate, server's, those of the whole net's forward pass, and what is known.
    forward = IMAGES * FORWARD_FLOPS / device.flops
    backward = IMAGES * FORWARD_FLOPS / device.flops  # the images need no gradient
    moved = IMAGES * 2 * WRITTEN / device.memory
    known = {
        "classic": 2 * LATENCY / 2,
        "split": forward + backward + 2 * moved + (2 + 2 * batches) * LATENCY / 2,
        "EcoFed-type": (forward + moved + LATENCY / 2) / 2,
    }
    uses = {"classic": (0.0, 3.0), "split": (1.0, 0.0), "EcoFed-type": (1.0, 0.0)}
    matrix = np.array([[8 * sizes[run] / 1e6, *uses[run]] for run in LOGGED])
    wanted = np.array([LOGGED[run][0] / ROUNDS - known[run] for run in LOGGED])
    per_mbit, server, whole = np.linalg.solve(matrix, wanted)
    print(f"link {1 / per_mbit:.1f} Mbit/s; server {server:.2f} s per round;", end=" ")
    print(f"forward pass of the whole net {whole * device.flops / IMAGES / 1e6:.0f} MFLOP per image")
    print("| run | logged, s | clock, s | logged, MiB | counted, MiB |\n|---|---|---|---|---|")
    for run, row in zip(LOGGED, matrix):
        seconds = ROUNDS * (row @ [per_mbit, server, whole] + known[run])
        counted = sizes[run] * ROUNDS * DEVICES / MIB
        print(f"| {run} | {LOGGED[run][0]:g} | {seconds:.1f} | {LOGGED[run][1]:g} | {counted:.1f} |")


if __name__ == "__main__":
    main()
