"""Does to running experiments what machines and people do, and checks that nothing is lost.

Every process continues the run that the one before left behind, until something happens to it:

- ``kills``: SIGKILL after a random time, after a random number of changes to the run directory, or while
  a checkpoint is being written or an old one deleted.
- ``signals``: SIGINT or SIGTERM at a random moment.
- ``edits``: a kill, after which a process with another state of the algorithm tries to continue.
- ``errors``: reads and writes in the run directory fail at random, as on a network file system.
- ``names``: kills in directories with awkward names.
- ``rivals``: two processes at once, of which one is killed.

When a run comes to its end, its last checkpoint is compared bit by bit, and its records one by one, with
those of an uninterrupted run:

    python experiments/kill_campaign.py --rounds 100 --kinds kills signals edits \
        > experiments/results/kill_campaign.json
    python experiments/kill_campaign.py --rounds 60 --kinds errors names rivals \
        > experiments/results/kill_campaign_faults.json
    python experiments/kill_campaign.py --states clients --events 50 --rounds 60 --kinds kills \
        > experiments/results/kill_campaign_clients.json

Prints one JSON object; exits with 1 where anything was lost, or something other than one line was said.
"""

import argparse
import builtins
import errno
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks import analysis
from fedjax_masks.algorithms import registry
from fedjax_masks.cli import main as cli
from fedjax_masks.experiment import build, checkpoint, experiment
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.loop import chunk_length
from fedjax_masks.simulation import Storage, make_simulation

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
    # Clients have states, of which checkpoints hold only where they are.
    "clients": {
        **_SHARED,
        "algorithm.name": "fedmask",
        "training.epochs": "1",
        "storage.clients": "host",
    },
}
IMPORTED = (analysis, experiment)  # once, before any process is forked
POLL = 0.0005
STARTING = 0.1  # seconds, in which a process has no handlers of its own yet
ENDING = 5.0  # seconds after a signal, within which a process that notes it has ended
ERROR_SHARE = 0.008  # of all calls that concern files
WRONG = (
    *("records_lost", "records_doubled", "records_that_differ", "arrays_that_differ", "leftovers"),
    *("without_summary", "checkpoints_deleted", "changed_by_a_refusal", "said_more_than_one_line"),
    *("unexpected_exits", "both_rivals_ran", "signals_lost"),
)
# Lines that a run says before it may be refused: of what it has survived.
NOTES = ("the run goes on", "is damaged", "no checkpoint: starting at round 0")
MODES = ("time", "progress", "writing", "deleting")
NAMES = ("a[q]", "back\\slash", "two words", "*?", "é%20~", "-dash", "a\nline", "#&;$HOME", "'\"", "x" * 200)


class Runs(NamedTuple):
    """What all runs of a campaign have in common."""

    setting: dict[str, str]
    rounds: int


class Process:
    """A process of its own that calls a function.

    It is forked from this one, which has imported everything and has not started jax: so it is there at once.

    Args:
      function: ``() -> int``: the exit code.
    """

    def __init__(self, function: Callable[[], int]) -> None:
        self._said, write = os.pipe()
        self.returncode: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._said)
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            # The streams of this process believe that they have the terminal or the file that it has.
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os._exit(self._call(function))
        os.close(write)

    @staticmethod
    def _call(function: Callable[[], int]) -> int:
        try:
            return function()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stderr.flush()

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self._pid, number)

    def end(self) -> str:
        """Waits for the end; what the process has said."""
        with open(self._said, encoding="utf-8", errors="replace", closefd=False) as pipe:
            said = pipe.read()
        os.close(self._said)
        while self.poll() is None:
            time.sleep(POLL)
        return said


def start(out: Path, runs: Runs, **child: str) -> Process:
    """Starts or continues the run in a directory; see :func:`run_in_child` for what may be done to it."""
    command = ["run", "--resume", "--quiet", "--out", str(out)]
    for key, value in {**runs.setting, "rounds": runs.rounds}.items():
        command += ["--set", f"{key}={value}"]
    return Process(lambda: run_in_child(child, command))


def run_in_child(what: dict[str, str], argv: list[str]) -> int:
    """Runs the command line in this process with an edited algorithm, or with failing files."""
    if "edit" in what:
        build = registry.build
        registry.build = lambda *args, **options: edited(build(*args, **options))
    if "errors" in what:
        fail_at_random(int(what["errors"]), Path(what["count"]))
    return cli.main(argv)


def edited(algorithm: Any) -> Any:
    """An algorithm whose server has one more leaf in its state."""

    def init(key: Any, task: Any) -> Any:
        state = algorithm.init(key, task)
        return state._replace(server={"own": state.server, "more": jnp.zeros(3)})

    def merge(key: Any, common: Any, server: Any, received: Any, cohort: Any) -> Any:
        return {**server, "own": algorithm.merge(key, common, server["own"], received, cohort)}

    def predict(common: Any, server: Any, client: Any, x: Any) -> Any:
        return algorithm.predict(common, server["own"], client, x)

    return algorithm._replace(
        init=init,
        send=lambda server, client_id: algorithm.send(server["own"], client_id),
        merge=merge,
        predict=algorithm.predict and predict,
        predict_global=algorithm.predict_global
        and (lambda common, server, x: algorithm.predict_global(common, server["own"], x)),
    )


def fail_at_random(seed: int, count: Path) -> None:
    """Lets calls that concern files raise EIO at random, and counts them in a file."""
    rng, failed, opened = np.random.default_rng(seed), [], open

    def failing(function: Callable) -> Callable:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            if _concerns_runs(target) and rng.random() < ERROR_SHARE:
                failed.append(1)
                with opened(count, "w") as file:
                    file.write(str(len(failed)))
                raise OSError(errno.EIO, "Input/output error")
            return function(target, *args, **options)

        return call

    builtins.open = io.open = failing(open)
    for name in ("replace", "rename", "fsync", "truncate", "pread", "pwrite"):
        setattr(os, name, failing(getattr(os, name)))


def _concerns_runs(target: Any) -> bool:
    # Not the folder of compiled programs, of which jax itself says that it cannot be read.
    return isinstance(target, int) or f"{os.sep}errors{os.sep}" in os.fspath(target)


def traces(out: Path) -> tuple:
    """What the run has left on disk so far."""
    names = sorted(path.name for path in _inside(out / "checkpoints"))
    metrics = out / "metrics.jsonl"
    return out.exists(), names, metrics.stat().st_size if metrics.exists() else 0


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def trigger(mode: str, out: Path, rng: np.random.Generator, seconds: float) -> Callable[[], bool]:
    """What says, when asked over and over, that the moment has come."""
    if mode == "time":
        end = time.monotonic() + STARTING + rng.uniform(0, 1.5 * seconds)
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
    old = {path.name for path in _inside(out / "checkpoints") if path.suffix == suffix}
    left = int(rng.integers(1, 5))
    counted: set[str] = set()

    def caught() -> bool:
        now = {path.name for path in _inside(out / "checkpoints") if path.suffix == suffix}
        counted.update(now - old)
        if len(counted) < left:
            return False
        time.sleep(rng.uniform(0, 0.05) if mode == "writing" else 0)
        return True

    return caught


def wait(process: Process, due: Callable[[], bool], sent: int | None) -> str:
    """Waits for the end of a process, to which a signal is sent once it is due; what it said."""
    while sent is not None and process.poll() is None and not due():
        time.sleep(POLL)
    if sent is not None:
        process.send(sent)
    return process.end()


class Outcome(NamedTuple):
    """What happened to one process.

    Attributes:
      happened: Whether what the kind is about has happened to it.
      ended: Whether the run has come to its end.
      found: Further counts.
    """

    happened: bool
    ended: bool
    found: Counter


def judge(process: Process, said: str, expected: tuple[int, ...]) -> Counter:
    """What is wrong with how a process ended."""
    lines = [line for line in said.splitlines() if not any(note in line for note in NOTES)]
    refused = process.returncode == 2
    wrong = "Traceback" in said or (refused and sum(line.startswith("error: ") for line in lines) != 1)
    found = Counter(refusals=refused)
    found["said_more_than_one_line"] += wrong or (refused and len(lines) != 1)
    found["unexpected_exits"] += process.returncode not in expected
    if wrong or (refused and len(lines) != 1) or process.returncode not in expected:
        print(f"exit {process.returncode}: {said[-2000:]}", file=sys.stderr)
    return found


def kill_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run and kills it, if it does not come to its end before."""
    mode = MODES[rng.integers(len(MODES))]
    before = {path.name for path in _inside(out / "checkpoints")}
    process = start(out, runs)
    said = wait(process, trigger(mode, out, rng, seconds), signal.SIGKILL)
    killed = process.returncode == -signal.SIGKILL
    half = {path.suffix for path in _inside(out / "checkpoints") if path.name not in before}
    metrics = out / "metrics.jsonl"
    written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    found = judge(process, said, (0, -signal.SIGKILL))
    found[f"kills by {mode}"] += killed
    found["kills while writing a checkpoint"] += killed and ".partial" in half
    found["kills while deleting a checkpoint"] += killed and ".deleted" in half
    found["kills before the first checkpoint"] += killed and not checkpoint.steps(out / "checkpoints")
    found["kills with a record after the last checkpoint"] += killed and written > _last_step(out)
    return Outcome(killed, not killed, found)


def signal_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run and asks it to end."""
    sent = (signal.SIGINT, signal.SIGTERM)[rng.integers(2)]
    process, due, sent_at = start(out, runs), trigger(MODES[rng.integers(2)], out, rng, seconds), [0.0]

    def moment() -> bool:
        sent_at[0] = time.monotonic()
        return due()

    said = wait(process, moment, sent)
    expected = (0, 128 + sent, -signal.SIGTERM)  # SIGTERM's usual effect, while it prepares
    found = judge(process, said, expected)
    found[f"{sent.name} while it prepared"] += process.returncode != 0 and "stopped after round" not in said
    found[f"{sent.name} while rounds ran"] += "stopped after round" in said
    found["signals_lost"] += time.monotonic() - sent_at[0] > ENDING
    return Outcome(process.returncode != 0, process.returncode == 0, found)


def edit_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Kills the run, and tries to continue it with another state of the algorithm."""
    outcome = kill_once(out, runs, rng, seconds)
    if outcome.ended or not checkpoint.steps(out / "checkpoints"):
        return outcome._replace(happened=False)
    before = contents(out)
    process = start(out, runs, edit="one more leaf")
    found = outcome.found + judge(process, wait(process, bool, None), (2,))
    found["changed_by_a_refusal"] += contents(out) != before
    return Outcome(True, False, found)


def fail_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run while files fail."""
    del seconds
    count = out.with_name("failed")
    count.parent.mkdir(exist_ok=True)
    count.write_text("0")
    process = start(out, runs, errors=str(rng.integers(2**31)), count=str(count))
    found = judge(process, wait(process, bool, None), (0, 2))
    failed = int(count.read_text())
    found["calls that failed"] += failed
    return Outcome(failed > 0, process.returncode == 0, found)


def rival_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run in two processes at once, and kills the one that has the directory."""
    first = start(out, runs)
    time.sleep(rng.uniform(0, seconds))
    second = start(out, runs)
    processes, due = [first, second], trigger("progress", out, rng, seconds)
    while all(process.poll() is None for process in processes):
        time.sleep(POLL)
    refused, other = sorted(processes, key=lambda process: process.poll() is None)
    found = judge(refused, refused.end(), (0, 2))
    said = wait(other, due, signal.SIGKILL) if refused.returncode == 2 else wait(other, bool, None)
    found += judge(other, said, (0, 2, -signal.SIGKILL))
    ran = [process.returncode in (0, -signal.SIGKILL) for process in processes]
    # The second may look at the finished run of the first, but only once that has ended.
    found["both_rivals_ran"] += all(ran) and -signal.SIGKILL in [process.returncode for process in processes]
    return Outcome(refused.returncode == 2, 0 in [process.returncode for process in processes], found)


KINDS: dict[str, Callable[[Path, Runs, np.random.Generator, float], Outcome]] = {
    "kills": kill_once,
    "signals": signal_once,
    "edits": edit_once,
    "errors": fail_once,
    "names": kill_once,
    "rivals": rival_once,
}


def contents(out: Path) -> dict[str, bytes]:
    """All files of a run, without what a process holds only while it runs."""
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != ".lock"}


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
    step, everyone = config.cohort, np.arange(config.data.clients or 0)
    clients = [simulation.clients(state, ids) for ids in np.split(everyone, len(everyone) // step)]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.common, state.server, clients))]


def difference(out: Path, whole: Path, runs: Runs) -> Counter:
    """How the end of a run to which things happened differs from that of an uninterrupted one."""
    mine, theirs = records(out), records(whole)
    seen = Counter(record["round"] for record in mine)
    leftover = [path for path in _inside(out / "checkpoints") if re.search(r"\.(partial|deleted)", path.name)]
    return Counter(
        records_lost=len({record["round"] for record in theirs} - set(seen)),
        records_doubled=sum(count - 1 for count in seen.values()),
        records_that_differ=sum(a != b for a, b in zip(mine, theirs)),
        arrays_that_differ=sum(
            a != b for a, b in zip(final_state(out, runs), final_state(whole, runs), strict=True)
        ),
        leftovers=len(leftover),
        without_summary=int(not (out / "summary.json").exists()),
    )


def difference_in_child(out: Path, whole: Path, runs: Runs) -> Counter:
    """The same, by a process that may start jax."""
    path = whole.with_name("difference.json")
    process = Process(lambda: path.write_text(json.dumps(difference(out, whole, runs))) and 0)
    said = process.end()
    assert process.returncode == 0, said
    return Counter(json.loads(path.read_text()))


def deleted(before: list[Path], out: Path) -> int:
    """How many checkpoints are gone that should have been kept."""
    now = [path for path in _inside(out / "checkpoints") if path.name.split(".")[0].isdigit()]
    return max(0, min(len(before), KEEP) - len(now))


def campaign(
    kind: str, events: int, runs: Runs, seed: int, minutes: float, folder: Path, whole: Path
) -> dict[str, Any]:
    """Lets a kind of thing happen so many times, or for so long, and then the last run come to its end."""
    rng, found = np.random.default_rng(seed), Counter(dict.fromkeys(WRONG, 0))
    began, number, happened = time.monotonic(), 0, 0
    alone = json.loads((whole / "summary.json").read_text())["wall_seconds"] + 4
    out = folder / kind / "1"
    while True:
        over = happened >= events or time.monotonic() - began > 60 * minutes
        if over and not out.exists():
            break
        before = checkpoint.steps(out / "checkpoints")
        if over:
            process = start(out, runs)
            outcome = Outcome(False, True, judge(process, wait(process, bool, None), (0,)))
        else:
            outcome = KINDS[kind](out, runs, rng, alone / 4)
        found += outcome.found
        found["checkpoints_deleted"] += deleted(before, out)
        happened += outcome.happened
        if outcome.ended:
            found += difference_in_child(out, whole, runs)
            number += 1
            name = NAMES[number % len(NAMES)] if kind == "names" else ""
            out = folder / kind / f"{name}{number + 1}"
        print(f"{kind}: {happened} of {events}, {number} runs", file=sys.stderr)
    figures = {**dict.fromkeys(WRONG, 0), **{name: int(found[name]) for name in sorted(found)}}
    return {"events": happened, "runs": number, **figures, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Runs the campaigns that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--states", choices=SETTINGS, default="server", help="whose states must survive")
    parser.add_argument("--rounds", type=int, default=150, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=np.inf, help="of each kind, at most")
    args = parser.parse_args()
    runs = Runs(SETTINGS[args.states], args.rounds)
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        # Filled by the uninterrupted run; no process to which things happen compiles anything again.
        jax.config.update("jax_compilation_cache_dir", str(Path(folder, "programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        whole = Path(folder, "whole")
        process = start(whole, runs)
        said = process.end()
        assert process.returncode == 0, said
        figures = {
            kind: campaign(kind, args.events, runs, args.seed, args.minutes, Path(folder), whole)
            for kind in args.kinds
        }
    print(json.dumps({"rounds_per_run": args.rounds, "seed": args.seed, **figures}, indent=2))
    return int(any(one[name] for one in figures.values() for name in WRONG))


if __name__ == "__main__":
    sys.exit(main())
