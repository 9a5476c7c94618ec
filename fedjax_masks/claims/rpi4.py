"""Logs of training ResNet12 on a Raspberry Pi 4: Wu et al. 2024, arXiv 2304.05495."""

from fedjax_masks.claims.claim import Claim, Statement, claim_out_of_reach
from fedjax_masks.claims.counts import exact_claim

LOGGED = {"classic": (581.0, 194.0), "split": (323.0, 1251.0), "EcoFed-type": (38.5, 78.4)}
"""Seconds and MiB of each run: totals over its devices and rounds."""

DEVICES, ROUNDS, IMAGES, BATCH = 2, 10, 500, 10
"""Devices and rounds of every run, images of each device, and images per minibatch."""

MIB = 2**20

_CONDITIONS = "ResNet12 cut after its first convolution, two devices of 500 images, ten rounds"


def bytes_per_round() -> dict[str, float]:
    """Bytes that a device sends and receives in a round, by run; means over rounds.

    The first convolution has 1,920 parameters and makes 16,384 activations of an image, after pooling. The
    shape of the whole network is not published; its size comes from the log of the classic run.
    """
    activations, on_device = 16_384, 1_920
    _, classic = LOGGED["classic"]
    return {
        "classic": classic * MIB / ROUNDS / DEVICES,
        "split": 2 * 4 * IMAGES * activations + 8 * IMAGES + 2 * 4 * on_device,
        "EcoFed-type": (IMAGES * activations + 4 * IMAGES // BATCH + 8 * IMAGES) / 2,
    }


def claims(system: str) -> list[Claim]:
    """Claims of the logs; bytes are predicted, seconds are not."""
    sizes = bytes_per_round()
    communication = [
        exact_claim(
            system,
            f"communication of {run} training on a Raspberry Pi 4 (log)",
            LOGGED[run][1],
            sizes[run] * ROUNDS * DEVICES / MIB,
            "MiB",
            conditions=_CONDITIONS,
            basis="authors' code",
            digits=digits,
            reason="payloads are counted, without the overhead of messages",
        )
        for run, digits in (("split", 0), ("EcoFed-type", 1))
    ]
    seconds = claim_out_of_reach(
        Statement(
            system,
            "time of classic, split and EcoFed-type training on a Raspberry Pi 4 (log)",
            ", ".join(f"{seconds:g}" for seconds, _ in LOGGED.values()) + " s",
            "measured",
            "authors' code",
        ),
        _CONDITIONS,
        "python experiments/calibrate_rpi4.py",
        "needs the board and its network, whose shape is not published; the simulated clock gives all three "
        "times with three constants that are fitted to them",
    )
    return [*communication, seconds]
