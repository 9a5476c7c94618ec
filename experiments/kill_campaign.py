r"""Disturbs running experiments as machines and people do, and checks that nothing is lost.

Every process continues the run of the process before it, until an event befalls it:

- ``kills``: SIGKILL after a random time, after a random number of changes to the run directory, or during the
  writing or the deletion of a checkpoint.
- ``signals``: SIGINT or SIGTERM at a random moment.
- ``edits``: a kill, after which a process with another state of the algorithm tries to continue.
- ``errors``: reads and writes in the run directory fail at random, as on a network file system.
- ``names``: kills in directories with awkward names.
- ``rivals``: two processes at once, of which one is killed.

After the last round of a run, its last checkpoint and its records are compared with those of an uninterrupted
run. They must be equal to the bit:

    python experiments/kill_campaign.py --rounds 100 --kinds kills signals edits \
        > experiments/results/kill_campaign.json
    python experiments/kill_campaign.py --rounds 60 --kinds errors names rivals \
        > experiments/results/kill_campaign_faults.json
    python experiments/kill_campaign.py --states clients --events 50 --rounds 60 --kinds kills \
        > experiments/results/kill_campaign_clients.json

The script prints one JSON object; its exit code is 1 where anything was lost, or a refusal had more than one
line.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from kill_checks import difference_in_child, entries
from kill_events import (
    Event,
    Outcome,
    edit_once,
    fail_once,
    judge,
    kill_once,
    never,
    rival_once,
    signal_once,
    wait,
)
from kill_processes import Runs, start

from fedjax_masks.experiment import checkpoint

KEEP = 2
_SHARED = {
    "model.name": "mlp",
    "model.hidden": "32",
    "data.partition": "dirichlet:0.5",
    "data.clients": "20",
    "cohort": "5",
    "eval_every": "1",
    "checkpoint_share": "1",
    "keep_checkpoints": str(KEEP),
}
SETTINGS = {
    # The server has a state that must survive.
    "server": {**_SHARED, "algorithm.name": "fedavg", "server_optimizer.name": "adam"},
    # Clients have states in a file beside the checkpoints.
    "clients": {
        **_SHARED,
        "algorithm.name": "fedmask",
        "training.epochs": "1",
        "storage.clients": "host",
    },
}
WRONG = (
    *("records_lost", "records_doubled", "records_that_differ", "arrays_that_differ", "leftovers"),
    *("without_summary", "checkpoints_deleted", "changed_by_a_refusal", "said_more_than_one_line"),
    *("unexpected_exits", "both_rivals_ran", "signals_lost"),
)
NAMES = ("a[q]", "back\\slash", "two words", "*?", "é%20~", "-dash", "a\nline", "#&;$HOME", "'\"", "x" * 200)
KINDS: dict[str, Event] = {
    "kills": kill_once,
    "signals": signal_once,
    "edits": edit_once,
    "errors": fail_once,
    "names": kill_once,
    "rivals": rival_once,
}


def checkpoints_deleted(previous: list[Path], out: Path) -> int:
    """The number of complete checkpoints that are missing and should be there.

    Args:
      previous: The complete checkpoints before the process.
      out: The directory of the run.
    """
    now = [path for path in entries(out / "checkpoints") if path.name.split(".")[0].isdigit()]
    return max(0, min(len(previous), KEEP) - len(now))


def finish(out: Path, runs: Runs) -> Outcome:
    """Continues the run to its last round."""
    process = start(out, runs)
    return Outcome(False, True, judge(process, wait(process, never, None), (0,)))


def campaign(
    kind: str, events: int, runs: Runs, seed: int, minutes: float, folder: Path, whole: Path
) -> dict[str, Any]:
    """Runs events of one kind, and then the last run to its last round.

    Args:
      kind: The kind of events.
      events: The number of events.
      runs: The configuration of the runs.
      seed: The seed of the events.
      minutes: The time after which no further event starts.
      folder: The folder of the runs.
      whole: The directory of the uninterrupted run.

    Returns:
      The figures of the campaign.
    """
    rng, counts = np.random.default_rng(seed), Counter(dict.fromkeys(WRONG, 0))
    start_time, number, happened = time.monotonic(), 0, 0
    seconds = json.loads((whole / "summary.json").read_text())["wall_seconds"] + 4
    out = folder / kind / "1"
    while True:
        is_over = happened >= events or time.monotonic() - start_time > 60 * minutes
        if is_over and not out.exists():
            break
        previous = checkpoint.steps(out / "checkpoints")
        outcome = finish(out, runs) if is_over else KINDS[kind](out, runs, rng, seconds / 4)
        counts += outcome.counts
        counts["checkpoints_deleted"] += checkpoints_deleted(previous, out)
        happened += outcome.happened
        if outcome.ended:
            counts += difference_in_child(out, whole, runs)
            number += 1
            name = NAMES[number % len(NAMES)] if kind == "names" else ""
            out = folder / kind / f"{name}{number + 1}"
        print(f"{kind}: {happened} of {events}, {number} runs", file=sys.stderr)
    figures = {**dict.fromkeys(WRONG, 0), **{name: int(counts[name]) for name in sorted(counts)}}
    return {"events": happened, "runs": number, **figures, "seconds": round(time.monotonic() - start_time, 1)}


def main() -> int:
    """Runs the campaigns of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100, help="number of events of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--states", choices=SETTINGS, default="server", help="the states that must survive")
    parser.add_argument("--rounds", type=int, default=150, help="rounds of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=np.inf, help="time limit of each kind")
    args = parser.parse_args()
    runs = Runs(SETTINGS[args.states], args.rounds)
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        # The uninterrupted run fills the folder of compiled programs, so no later process compiles.
        jax.config.update("jax_compilation_cache_dir", str(Path(folder, "programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        whole = Path(folder, "whole")
        process = start(whole, runs)
        output = process.end()
        assert process.returncode == 0, output
        figures = {
            kind: campaign(kind, args.events, runs, args.seed, args.minutes, Path(folder), whole)
            for kind in args.kinds
        }
    print(json.dumps({"rounds_per_run": args.rounds, "seed": args.seed, **figures}, indent=2))
    return int(any(kind_figures[name] for kind_figures in figures.values() for name in WRONG))


if __name__ == "__main__":
    sys.exit(main())
