"""Kills a run at random moments until a number of kills is reached, and checks that nothing is lost.

Every process continues the run that the one before left behind. It is killed (SIGKILL) after a random
time, after a random number of changes to the run directory, or while a checkpoint is being written or
an old one deleted. When a run comes to its end, its last checkpoint is compared bit by bit, and its
records one by one, with those of an uninterrupted run:

    python experiments/kill_campaign.py --kills 100 --rounds 150 > experiments/results/kill_campaign.json
    python experiments/kill_campaign.py --states clients --kills 50 --rounds 60 \
        > experiments/results/kill_campaign_clients.json

Prints one JSON object; exits with 1 where a resume failed or a result differs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks import assembly, checkpoint
from fedjax_masks.config import make_config
from fedjax_masks.runner import chunk_length
from fedjax_masks.simulation import Storage, make_simulation

_SHARED = {
    "model.name": "mlp",
    "model.hidden": "32",
    "data.partition": "dirichlet:0.5",
    "data.clients": "20",
    "cohort": "5",
    "eval_every": "1",
    "checkpoint_share": "1",
    "keep_checkpoints": "2",
}
SETTINGS = {
    # The server has a state that must survive.
    "server": {**_SHARED, "algorithm.name": "fedavg", "server_optimizer.name": "adam"},
    # Clients have states, of which checkpoints hold only where they are.
    "clients": {
        **_SHARED,
        "algorithm.name": "fedmask",
        "training.epochs": "1",
        "storage.clients": "host",
    },
}
POLL = 0.0005
WRONG = (
    *("records_lost", "records_doubled", "records_that_differ", "arrays_that_differ"),
    *("leftovers", "without_summary"),
)
MODES = ("time", "progress", "writing", "deleting")


class Runs(NamedTuple):
    """What all runs of a campaign have in common."""

    setting: dict[str, str]
    rounds: int


def start(out: Path, runs: Runs) -> subprocess.Popen:
    """Starts or continues the run in a directory."""
    command = [sys.executable, "-m", "fedjax_masks.cli", "run", "--resume", "--quiet", "--out", str(out)]
    for key, value in {**runs.setting, "rounds": runs.rounds}.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def traces(out: Path) -> tuple:
    """What the run has left on disk so far."""
    names = sorted(path.name for path in (out / "checkpoints").glob("*"))
    metrics = out / "metrics.jsonl"
    return out.exists(), names, metrics.stat().st_size if metrics.exists() else 0


def trigger(mode: str, out: Path, rng: np.random.Generator, seconds: float) -> Callable[[], bool]:
    """What says, when asked over and over, that the moment has come."""
    if mode == "time":
        end = time.monotonic() + rng.uniform(0, 1.5 * seconds)
        return lambda: time.monotonic() >= end
    if mode == "progress":
        left, seen = int(rng.integers(1, 20)), traces(out)

        def moved() -> bool:
            nonlocal left, seen
            if (now := traces(out)) != seen:
                left, seen = left - 1, now
            return left <= 0

        return moved
    # A directory of a checkpoint that is not complete yet, or no longer.
    suffix = ".partial" if mode == "writing" else ".deleted"
    old = {path.name for path in (out / "checkpoints").glob("*" + suffix)}
    left = int(rng.integers(1, 5))
    counted: set[str] = set()

    def caught() -> bool:
        counted.update({path.name for path in (out / "checkpoints").glob("*" + suffix)} - old)
        if len(counted) < left:
            return False
        time.sleep(rng.uniform(0, 0.05) if mode == "writing" else 0)
        return True

    return caught


def kill_once(out: Path, runs: Runs, mode: str, rng: np.random.Generator, seconds: float) -> dict[str, Any]:
    """Continues the run and kills it, if it does not come to its end before; says what was found."""
    before = set(out.glob("checkpoints/*.*"))
    process = start(out, runs)
    due = trigger(mode, out, rng, seconds)
    while process.poll() is None and not due():
        time.sleep(POLL)
    process.kill()
    _, stderr = process.communicate(timeout=600)
    killed = process.returncode == -signal.SIGKILL
    metrics = out / "metrics.jsonl"
    text = metrics.read_bytes() if metrics.exists() else b""
    half = {path.suffix for path in set(out.glob("checkpoints/*.*")) - before}
    return {
        "killed": killed,
        "failed": None if killed or process.returncode == 0 else stderr[-2000:],
        "while writing a checkpoint": killed and ".partial" in half,
        "while deleting a checkpoint": killed and ".deleted" in half,
        "before the first checkpoint": killed and not checkpoint.steps(out / "checkpoints"),
        "with a record after the last checkpoint": killed and _rounds(text) > _last_step(out),
    }


def _rounds(text: bytes) -> int:
    return text.count(b"\n")


def _last_step(out: Path) -> int:
    return max((int(step.name) for step in checkpoint.steps(out / "checkpoints")), default=0)


def records(out: Path) -> list[dict]:
    """The records, without the time that passed."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != "wall_seconds"} for record in found]


def final_state(out: Path, runs: Runs) -> list[bytes]:
    """Every array of the last checkpoint, and of the clients' states that it refers to."""
    config = make_config({**runs.setting, "rounds": runs.rounds})
    simulation = make_simulation(
        *assembly.build(config),
        cohort=config.cohort,
        chunk=chunk_length(config.eval_every),
        plan="scan",
        storage=Storage(config.storage.clients, path=out / "clients.rows"),
    )
    restored = checkpoint.restore_latest(out / "checkpoints", simulation.init())
    assert restored is not None, "the run has no checkpoint"
    assert restored.meta["totals"]["round"] == runs.rounds, "the last checkpoint is not of the last round"
    state = restored.state
    step, everyone = config.cohort, np.arange(config.data.clients or 0)
    clients = [simulation.clients(state, ids) for ids in np.split(everyone, len(everyone) // step)]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.common, state.server, clients))]


def difference(out: Path, whole: Path, runs: Runs) -> dict[str, Any]:
    """How the end of a run that was killed differs from that of an uninterrupted one."""
    mine, theirs = records(out), records(whole)
    seen = Counter(record["round"] for record in mine)
    return {
        "records_lost": len({record["round"] for record in theirs} - set(seen)),
        "records_doubled": sum(count - 1 for count in seen.values()),
        "records_that_differ": sum(a != b for a, b in zip(mine, theirs)),
        "arrays_that_differ": sum(
            a != b for a, b in zip(final_state(out, runs), final_state(whole, runs), strict=True)
        ),
        "leftovers": len(list(out.glob("checkpoints/*.*"))),
        "without_summary": int(not (out / "summary.json").exists()),
    }


def campaign(kills: int, runs: Runs, seed: int, minutes: float, folder: Path) -> dict[str, Any]:
    """Runs until so many processes have been killed, or for so long, and then the last run to its end."""
    rng, found, differences = np.random.default_rng(seed), Counter(), Counter()
    failures: list[str] = []
    whole, began = folder / "whole", time.monotonic()
    end = began + 60 * minutes
    process = start(whole, runs)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    alone = time.monotonic() - began
    number, out = 0, folder / "run-1"
    while (found["kills"] < kills and time.monotonic() < end) or out.exists():
        if found["kills"] < kills and time.monotonic() < end:
            mode = MODES[rng.integers(len(MODES))]
            outcome = kill_once(out, runs, mode, rng, alone / 4)
            ended = not outcome.pop("killed")
            found["kills"] += not ended
            found[f"kills by {mode}"] += not ended
        else:
            process = start(out, runs)
            _, stderr = process.communicate()
            outcome, ended = {"failed": stderr[-2000:] if process.returncode else None}, True
        failure = outcome.pop("failed")
        found.update({name: int(happened) for name, happened in outcome.items()})
        if failure is not None:
            failures.append(failure)
            break
        if ended:
            differences.update(difference(out, whole, runs))
            number, out = number + 1, folder / f"run-{number + 2}"
        print(f"{found['kills']} kills, {number} runs", file=sys.stderr)
    return {
        **{name: found[name] for name in sorted(found)},
        "runs": number,
        "rounds_per_run": runs.rounds,
        "seed": seed,
        "failed_resumes": len(failures),
        **differences,
        "failures": failures,
        "seconds_of_an_uninterrupted_run": round(alone, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """Runs the campaign that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--states", choices=SETTINGS, default="server", help="whose states must survive")
    parser.add_argument("--rounds", type=int, default=150, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=np.inf, help="kill no more after so long")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        # Filled by the uninterrupted run; no process that is killed compiles anything again.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder, "programs")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        figures = campaign(
            args.kills, Runs(SETTINGS[args.states], args.rounds), args.seed, args.minutes, Path(folder)
        )
    print(json.dumps(figures, indent=2))
    return int(any(figures[name] for name in ("failed_resumes", *WRONG)))


if __name__ == "__main__":
    sys.exit(main())
