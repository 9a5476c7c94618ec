"""Published logs of training ResNet12 on a Raspberry Pi 4: Wu et al. 2024, arXiv 2304.05495."""

from fedjax_masks.claims.claim import Claim, counted, unreachable

LOGGED = {"classic": (581.0, 194.0), "split": (323.0, 1251.0), "EcoFed-type": (38.5, 78.4)}
"""Seconds and MiB of the runs, of all their devices and rounds."""

DEVICES, ROUNDS, IMAGES, BATCH = 2, 10, 500, 10
"""Of every run; images are those of each device."""

MIB = 2**20


def bytes_per_round() -> dict[str, float]:
    """What a device sends and receives in a round of each run, in the mean over rounds.

    The first convolution, 1,920 parameters, makes 16,384 activations of an image, pooled. The size of the
    whole net, whose shape is not published, is that of the log of the classic run.
    """
    activations, on_device = 16_384, 1_920
    _, classic = LOGGED["classic"]
    return {
        "classic": classic * MIB / ROUNDS / DEVICES,
        "split": 2 * 4 * IMAGES * activations + 8 * IMAGES + 2 * 4 * on_device,
        "EcoFed-type": (IMAGES * activations + 4 * IMAGES // BATCH + 8 * IMAGES) / 2,
    }


def claims(system: str) -> list[Claim]:
    """The rows: bytes are foretold, seconds are not."""
    sizes = bytes_per_round()
    why = "counted are payloads alone, not what messages carry around them"
    counts = [
        counted(
            system,
            f"{run} training of ResNet12 on a Raspberry Pi 4, ten rounds (log)",
            LOGGED[run][1],
            sizes[run] * ROUNDS * DEVICES / MIB,
            "MiB",
            digits=digits,
            why=why,
        )
        for run, digits in (("split", 0), ("EcoFed-type", 1))
    ]
    seconds = unreachable(
        system,
        "seconds of classic, split and EcoFed-type training of ResNet12 on a Raspberry Pi 4 (log)",
        ", ".join(f"{seconds:g}" for seconds, _ in LOGGED.values()) + " s",
        "measured",
        "takes the board and its net, whose shape is not published; the simulated clock gives all three with "
        "three constants that are fitted to them",
        "python experiments/calibrate_rpi4.py",
    )
    return [*counts, seconds]
