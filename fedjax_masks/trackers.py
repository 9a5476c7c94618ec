"""Where a run's records go: always to ``metrics.jsonl``, and to what the user names.

A backend is a function that opens a :class:`Tracker`, and one line in :data:`TRACKERS`. Its package is
imported only when it is opened; what the package reads from the environment (``WANDB_MODE=offline``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``) is left to it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.errors import UserError, unknown

Record = Mapping[str, Any]

METRICS = "metrics.jsonl"


class Tracker(NamedTuple):
    """Takes the records of a run.

    Attributes:
      log: Takes one record, a line of ``metrics.jsonl``, in the order of rounds.
      close: Called once, when the run is over or has failed.
    """

    log: Callable[[Record], None]
    close: Callable[[], None]


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by name, all but the round; ``extra`` behind a slash.

    >>> scalars({"round": 2, "train_loss": 0.5, "density": None, "extra": {"flips": 0.1}})
    {'train_loss': 0.5, 'extra/flips': 0.1}
    """
    extra = {f"extra/{name}": value for name, value in record.get("extra", {}).items()}
    own = {name: value for name, value in record.items() if name not in ("round", "extra")}
    return {name: float(value) for name, value in (own | extra).items() if value is not None}


def append(path: Path, text: str) -> None:
    """Appends to a file and makes sure that it is on disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def jsonl(path: Path) -> Tracker:
    """One JSON object a line, whole records."""
    return Tracker(lambda record: append(path, json.dumps(record) + "\n"), lambda: None)


def tensorboard(out: Path, config: Mapping[str, Any], done: int) -> Tracker:
    """Event files under ``tensorboard/``."""
    from tensorboardX import SummaryWriter

    # Whatever was written behind the round that a resumed run starts from is not shown.
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
    writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", 0)

    def log(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["round"])
        writer.flush()

    return Tracker(log, writer.close)


def wandb(out: Path, config: Mapping[str, Any], done: int) -> Tracker:
    """A run of Weights & Biases; a resumed one goes on with the same."""
    import wandb  # pyright: ignore[reportMissingImports]

    known = _read(out / "wandb.id")
    run = wandb.init(dir=str(out), name=out.name, config=dict(config), id=known, resume="allow")
    (out / "wandb.id").write_text(run.id, "utf-8")
    return Tracker(lambda record: run.log(scalars(record), step=record["round"]), run.finish)


def mlflow(out: Path, config: Mapping[str, Any], done: int) -> Tracker:
    """A run of MLflow; a resumed one goes on with the same."""
    import mlflow  # pyright: ignore[reportMissingImports]

    client, known = mlflow.MlflowClient(), _read(out / "mlflow.id")
    if known is None:
        experiment = mlflow.set_experiment("fedjax_masks")
        known = client.create_run(experiment.experiment_id, run_name=out.name).info.run_id
        client.log_dict(known, dict(config), "config.json")
        (out / "mlflow.id").write_text(known, "utf-8")

    def log(record: Record) -> None:
        for name, value in scalars(record).items():
            client.log_metric(known, name, value, step=record["round"])

    return Tracker(log, lambda: client.set_terminated(known))


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


class Backend(NamedTuple):
    """How to open a tracker, and the package that it needs."""

    open: Callable[[Path, Mapping[str, Any], int], Tracker]
    package: str


TRACKERS: Mapping[str, Backend] = {
    "mlflow": Backend(mlflow, "mlflow"),
    "tensorboard": Backend(tensorboard, "tensorboardX"),
    "wandb": Backend(wandb, "wandb"),
}


def parse(text: str | None) -> tuple[str, ...]:
    """The backends that a user has named, joined by ``+``.

    Raises:
      UserError: One does not exist.

    >>> parse("tensorboard+wandb"), parse(None)
    (('tensorboard', 'wandb'), ())
    """
    names = tuple(dict.fromkeys(text.split("+"))) if text else ()
    for name in names:
        if name not in TRACKERS:
            raise unknown("log", name, TRACKERS)
    return names


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError where the package of a backend is missing."""
    for name in names:
        if find_spec(TRACKERS[name].package) is None:
            raise UserError(
                f"log={name!r}: the package {TRACKERS[name].package} is missing; "
                f"accepted after pip install 'fedjax_masks[{name}]'"
            )


@contextmanager
def tracking(
    names: Sequence[str], out: Path, *, config: Mapping[str, Any], done: int
) -> Iterator[Callable[[Record], None]]:
    """Opens ``metrics.jsonl`` and the named backends, and closes them whatever happens.

    Args:
      names: Keys of :data:`TRACKERS`.
      out: The run directory.
      config: The content of ``config.json``.
      done: Rounds done before.

    Yields:
      Passes a record to all of them, to ``metrics.jsonl`` first.
    """
    with ExitStack() as stack:
        opened = [jsonl(out / METRICS)]
        for name in names:
            opened.append(TRACKERS[name].open(out, config, done))
            stack.callback(opened[-1].close)

        def log(record: Record) -> None:
            for tracker in opened:
                tracker.log(record)

        yield log
