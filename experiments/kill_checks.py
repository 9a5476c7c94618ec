"""Comparison of a run that was disturbed with an uninterrupted one."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from kill_processes import Process, Runs

from fedjax_masks.experiment import build, checkpoint
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.loop import chunk_length
from fedjax_masks.simulation import Storage, make_simulation


def entries(folder: Path) -> list[Path]:
    """The entries of a folder; none where there is no folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


def contents(out: Path) -> dict[str, bytes]:
    """All files of a run, without the lock that a process holds while it runs."""
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != ".lock"}


def last_step(out: Path) -> int:
    """The round of the last checkpoint; 0 without one."""
    return max((int(step.name) for step in checkpoint.steps(out / "checkpoints")), default=0)


def records(out: Path) -> list[dict[str, Any]]:
    """The records of a run, without times."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "wall_seconds"} for line in lines
    ]


def final_state(out: Path, runs: Runs) -> list[bytes]:
    """Every array of the last checkpoint, and of the clients' states that it refers to."""
    config = make_config({**runs.setting, "rounds": runs.rounds})
    simulation = make_simulation(
        *build.build(config),
        cohort=config.cohort,
        chunk=chunk_length(config.eval_every),
        plan="scan",
        storage=Storage(config.storage.clients, path=out / "clients.rows"),
    )
    restored = checkpoint.restore_latest(out / "checkpoints", simulation.init())
    assert restored is not None, "the run has no checkpoint"
    assert restored.meta["totals"]["round"] == runs.rounds, "the last checkpoint is not of the last round"
    state = restored.state
    size, everyone = config.cohort, np.arange(config.data.clients or 0)
    clients = [simulation.clients(state, ids) for ids in np.split(everyone, len(everyone) // size)]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.server, clients))]


def difference(out: Path, whole: Path, runs: Runs) -> Counter[str]:
    """Counts the differences of a finished run from an uninterrupted one.

    Args:
      out: The directory of the run.
      whole: The directory of the uninterrupted run.
      runs: The configuration of both.
    """
    ours, theirs = records(out), records(whole)
    rounds = Counter(record["round"] for record in ours)
    names = [path.name for path in entries(out / "checkpoints")]
    return Counter(
        records_lost=len({record["round"] for record in theirs} - set(rounds)),
        records_doubled=sum(count - 1 for count in rounds.values()),
        records_that_differ=sum(a != b for a, b in zip(ours, theirs)),
        arrays_that_differ=sum(
            a != b for a, b in zip(final_state(out, runs), final_state(whole, runs), strict=True)
        ),
        leftovers=sum(bool(re.search(r"\.(partial|deleted)", name)) for name in names),
        without_summary=int(not (out / "summary.json").exists()),
    )


def difference_in_child(out: Path, whole: Path, runs: Runs) -> Counter[str]:
    """Calls :func:`difference` in a process of its own, which may start jax."""
    path = whole.with_name("difference.json")
    process = Process(lambda: path.write_text(json.dumps(difference(out, whole, runs))) and 0)
    output = process.end()
    assert process.returncode == 0, output
    return Counter(json.loads(path.read_text()))
