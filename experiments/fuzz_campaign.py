"""Feeds random and damaged input to every reader; each must accept it, or refuse it in one line.

Configurations go through the command line up to the experiment that would run; damaged payloads through
``serialization.decode``; damaged files through the readers of data, parameters, configurations, run
directories and traces. Every case has a limit of time and of memory, and a seed that reproduces it:

    python experiments/fuzz_campaign.py config=10000 payload=100000 npz=10000
    python experiments/fuzz_campaign.py --case config:1234

The script prints one JSON object; its exit code is 1 where anything but the package's own errors came out.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_files
import fuzz_runs
import numpy as np
from fuzz_damage import Rng

from fedjax_masks.core.errors import UserError
from fedjax_masks.data import prepared, sources

SECONDS = 60  # of one case, at most
BYTES = 3 << 30  # that one case may allocate
BATCH = 20_000  # cases of one process, at most

KINDS: dict[str, Callable[[Rng, Path], bool]] = {
    "config": fuzz_runs.run_config,
    "toml": fuzz_runs.run_toml,
    "payload": fuzz_files.run_payload,
    "npz": fuzz_files.run_npz,
    "weights": fuzz_files.run_weights,
    "directory": fuzz_runs.run_directory,
    "trace": fuzz_files.run_trace,
}
"""Functions that run one case, by kind. The order is part of the seeds."""

REFUSALS = {"payload": ValueError, "npz": ValueError}
"""The exception of a refusal, by kind; all other kinds raise UserError."""


class Overtime(BaseException):
    """The end of a case that takes too long; no handler of the package catches it."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises Overtime after a minute."""

    def stop(*_: Any) -> None:
        raise Overtime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(kind: str, seed: int, number: int) -> str:
    """Runs a case: ``accepted``, ``refused``, or a description of a fault."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required additional header")
        try:
            with time_limit():
                KINDS[kind](rng, Path(folder))
        except Overtime:
            return f"took more than {SECONDS} s: {_error()}"
        except REFUSALS.get(kind, UserError) as error:
            return "refused" if str(error).isprintable() else f"not one printable line: {error!r}"
        except BaseException:
            return _error()
    return "accepted"


def _error() -> str:
    """The current exception and its innermost frames, in one line."""
    lines = traceback.format_exc().strip().splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    return " | ".join([lines[-1][:300], *frames[-3:]])


def work(kind: str, seed: int, first: int, last: int, journal: Path) -> None:
    """Runs cases in this process; the journal names each case before it runs, in case the process dies."""
    # No case trains or downloads, and the digits are read once.
    images = sources.digits()
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory + BYTES, memory + BYTES))
    with (
        mock.patch.object(sources, "digits", return_value=images),
        mock.patch.object(prepared, "_prepare", _no_network),
        open(journal, "w", buffering=1) as file,
    ):
        for number in range(first, last):
            file.write(json.dumps({"began": number}) + "\n")
            start = time.perf_counter()
            result = {"outcome": outcome(kind, seed, number), "seconds": time.perf_counter() - start}
            file.write(json.dumps(result) + "\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        file.write(json.dumps({"peak_megabytes": round(peak)}) + "\n")


def _no_network(*args: Any, **options: Any) -> None:
    raise ConnectionError("no network")


class Figures:
    """The figures of a campaign, from the journals of its processes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, list[int]] = {}
        self.slowest, self.peak, self.number = 0.0, 0, 0

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Adds a journal; ``number`` becomes the case after the last one that ended."""
        for line in lines:
            self.peak = max(self.peak, line.get("peak_megabytes", 0))
            self.number = line.get("began", self.number)
            if "outcome" in line:
                clean = line["outcome"] in ("accepted", "refused")
                self.counts[line["outcome"] if clean else "fault"] += 1
                if not clean:
                    self.faults.setdefault(line["outcome"], []).append(self.number)
                self.number, self.slowest = self.number + 1, max(self.slowest, line["seconds"])

    def add_death(self, code: int, stderr: str) -> None:
        """Adds the case in which a process died."""
        self.counts["fault"] += 1
        self.faults[f"died with {code}: {stderr[-500:]}"] = [self.number]
        self.number += 1


def campaign(kind: str, cases: int, seed: int, end: float, folder: Path) -> dict[str, Any]:
    """Runs cases in processes of their own, and replaces a process that dies."""
    figures, start = Figures(), time.monotonic()
    while figures.number < cases and time.monotonic() < end:
        journal = folder / f"{kind}.jsonl"
        numbers = [str(figures.number), str(min(cases, figures.number + BATCH))]
        command = [sys.executable, __file__, "--work", kind, *numbers, str(journal), "--seed", str(seed)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _, stderr = process.communicate(timeout=max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
        figures.add([json.loads(line) for line in journal.read_text().splitlines()])
        if process.returncode and time.monotonic() < end:
            figures.add_death(process.returncode, stderr)
    return {
        "cases": sum(figures.counts.values()),
        **{name: figures.counts[name] for name in ("accepted", "refused", "fault")},
        "slowest_seconds": round(figures.slowest, 2),
        "peak_megabytes": figures.peak,
        "seconds": round(time.monotonic() - start, 1),
        "faults": {fault: numbers[:5] for fault, numbers in figures.faults.items()},
    }


def main() -> int:
    """Runs the campaigns, or the one case, of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("campaigns", nargs="*", metavar="KIND=CASES", help=", ".join(KINDS))
    parser.add_argument("--case", metavar="KIND:NUMBER", help="run one case and print its outcome")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e4, help="the time after which no case starts")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.work:
        kind, first, last, journal = args.work
        work(kind, args.seed, int(first), int(last), Path(journal))
        return 0
    if args.case:
        kind, _, number = args.case.partition(":")
        print(outcome(kind, args.seed, int(number)))
        return 0
    end = time.monotonic() + 60 * args.minutes
    cases = dict(text.split("=") for text in args.campaigns)
    with tempfile.TemporaryDirectory(prefix="fuzz-campaign-") as folder:
        figures = {
            kind: campaign(kind, int(number), args.seed, end, Path(folder)) for kind, number in cases.items()
        }
    print(json.dumps({"seed": args.seed, "seconds_per_case": SECONDS, **figures}, indent=2))
    return int(any(campaign_figures["fault"] for campaign_figures in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
