"""The simulated clock beside published logs of Raspberry Pi 4: ``python experiments/calibrate_rpi4.py``.

The logs (Wu et al. 2024, arXiv 2304.05495) are of ResNet12 on CIFAR-10, two devices, 10 rounds. Three
constants are fitted so that the clock gives the logged seconds: the rate of the link, the server's seconds
per round, and the FLOPs of a forward pass of the whole network, whose shape is not published. With as many
logs as constants, the fit shows that the clock can reproduce these runs, but it does not predict them.

Bytes are predicted. Each device has 500 images in minibatches of 10, and the first convolution (1,920
parameters, pooled) makes 16,384 activations of an image. Only the size of the whole network comes from the
log of the classic run.
"""

import numpy as np
from common import markdown

from fedjax_masks.claims.rpi4 import BATCH, DEVICES, IMAGES, LOGGED, MIB, ROUNDS, bytes_per_round
from fedjax_masks.costs.devices import DEVICES as PROFILES

LATENCY = 0.05
FORWARD_FLOPS = 2 * 32 * 32 * 27 * 64  # of the device's convolution, per image
OUTPUT_BYTES = 4 * 32 * 32 * 64  # of the device's convolution, per image


def main() -> None:
    """Fits the constants, and prints the logs beside the clock."""
    device, sizes = PROFILES["rpi4"], bytes_per_round()
    batches = IMAGES // BATCH
    # A round lasts 8 bytes / rate, the server's seconds, the whole network's forward passes, and a constant.
    forward = IMAGES * FORWARD_FLOPS / device.flops
    backward = IMAGES * FORWARD_FLOPS / device.flops  # the images need no gradient
    memory = IMAGES * 2 * OUTPUT_BYTES / device.memory
    constant = {
        "classic": 2 * LATENCY / 2,
        "split": forward + backward + 2 * memory + (2 + 2 * batches) * LATENCY / 2,
        "EcoFed-type": (forward + memory + LATENCY / 2) / 2,
    }
    server_and_whole = {"classic": (0.0, 3.0), "split": (1.0, 0.0), "EcoFed-type": (1.0, 0.0)}
    matrix = np.array([[8 * sizes[run] / 1e6, *server_and_whole[run]] for run in LOGGED])
    logged = np.array([LOGGED[run][0] / ROUNDS - constant[run] for run in LOGGED])
    per_mbit, server, whole = np.linalg.solve(matrix, logged)
    print(f"link {1 / per_mbit:.1f} Mbit/s; server {server:.2f} s per round;", end=" ")
    print(f"forward pass of the whole net {whole * device.flops / IMAGES / 1e6:.0f} MFLOP per image")
    rows = []
    for run, factors in zip(LOGGED, matrix):
        seconds = ROUNDS * (factors @ [per_mbit, server, whole] + constant[run])
        counted = sizes[run] * ROUNDS * DEVICES / MIB
        rows.append([run, f"{LOGGED[run][0]:g}", f"{seconds:.1f}", f"{LOGGED[run][1]:g}", f"{counted:.1f}"])
    print(markdown(["run", "logged, s", "clock, s", "logged, MiB", "counted, MiB"], rows))


if __name__ == "__main__":
    main()
