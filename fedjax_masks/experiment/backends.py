"""Tracking backends: TensorBoard, Weights & Biases, MLflow.

A backend is a function that opens a :class:`Tracker`, and one line in :data:`BACKENDS`. Its package is
imported only when it is used, and reads its own environment variables (``WANDB_MODE=offline``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``).

When a run is opened again, every backend leaves out records of rounds that it has: a killed run has logged
rounds after its last checkpoint, and runs them again.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.experiment.frames import event_frames, leveldb_frames

Record = Mapping[str, Any]


class Tracker(NamedTuple):
    """One run at one backend.

    Attributes:
      log: ``(record) -> None``: sends a line of ``metrics.jsonl``, unless the backend has its round.
      describe: ``(config) -> None``: sends the content of ``config.json``.
      close: ``(exit code) -> None``: 0 for a finished run, 128 plus a signal's number for a run that a
        signal has interrupted and that can be resumed, another code for a failure.
    """

    log: Callable[[Record], None]
    describe: Callable[[Mapping[str, Any]], None]
    close: Callable[[int], None]


class Backend(NamedTuple):
    """A backend.

    Attributes:
      open: ``(run directory, config) -> tracker``: opens the tracker of a run, new or resumed.
      check: Raises an exception if the backend cannot be reached, or has no key.
      package: The package that the backend requires.
      remedy: Advice for the case that ``check`` or ``open`` raise.
      files: Names of the backend's files in the run directory.
    """

    open: Callable[[Path, Mapping[str, Any]], Tracker]
    check: Callable[[], None]
    package: str
    remedy: str
    files: tuple[str, ...]


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by name, without the round; names in ``extra`` follow a slash.

    >>> scalars({"round": 2, "train_loss": 0.5, "density": None, "extra": {"flips": 0.1}})
    {'train_loss': 0.5, 'extra/flips': 0.1}
    """
    extra = {f"extra/{name}": value for name, value in record.get("extra", {}).items()}
    plain = {name: value for name, value in record.items() if name not in ("round", "extra")}
    return {name: float(value) for name, value in (plain | extra).items() if value is not None}


def tensorboard(out: Path, config: Mapping[str, Any]) -> Tracker:
    """Opens event files under ``tensorboard/``."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import text

    folder = out / "tensorboard"
    folder.mkdir(exist_ok=True)
    files = sorted(folder.iterdir())
    last = max((Event.FromString(frame).step for path in files for frame in event_frames(path)), default=0)
    # SummaryWriter hands events to a thread: a killed process would lose two minutes of them, and a full
    # disk would block the run for ever. Without a suffix, two files of one second would be one.
    writer = EventsWriter(str(folder / "events"), f".{len(files)}")

    def write(step: int, summary: Any) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    def log(record: Record) -> None:
        nonlocal last
        if record["round"] > last:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(record).items()]
            write(record["round"], Summary(value=values))
            last = record["round"]

    def describe(config: Mapping[str, Any]) -> None:
        if not last:
            write(0, text("config", f"```json\n{json.dumps(config, indent=2)}\n```"))

    def close(code: int) -> None:
        writer.close()

    return Tracker(log, describe, close)


def wandb(out: Path, config: Mapping[str, Any]) -> Tracker:
    """Opens a run of Weights & Biases."""
    import wandb  # pyright: ignore[reportMissingImports]

    run_id = _read(out / "wandb.id") or secrets.token_hex(4)
    (out / "wandb.id").write_text(run_id, "utf-8")
    run = wandb.init(
        dir=str(out),
        name=out.name,
        id=run_id,
        config=dict(config),
        allow_val_change=True,
        resume="allow",
        reinit="create_new",  # else the runs of a sweep's program would all be the first one
    )
    last = max(run.starting_step - 1, _wandb_offline(out, run_id))

    def log(record: Record) -> None:
        nonlocal last
        if record["round"] > last:
            run.log(scalars(record), step=record["round"], commit=True)
            last = record["round"]

    def close(code: int) -> None:
        if code > 128:
            run.mark_preempting()  # W&B's state of a run that will be resumed
        run.finish(exit_code=code)
        if run.offline:
            _await_exit(Path(run.settings.sync_file))

    return Tracker(log, lambda config: run.config.update(dict(config), allow_val_change=True), close)


def _check_wandb() -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
    if online and not wandb.login(prompt=False):  # which verifies a key
        raise PermissionError("no API key is configured")


def _await_exit(path: Path) -> None:
    """Waits for the end of a file, which W&B's own process writes after a run has finished."""
    deadline, size = time.monotonic() + 10, -1  # a process that has died writes nothing
    while path.exists() and time.monotonic() < deadline:
        # A long run's file is large: it is read again only where it has grown.
        old_size, size = size, path.stat().st_size
        if size != old_size and any(record.HasField("exit") for record in _wandb_records(path)):
            return
        time.sleep(0.01)


def _wandb_offline(out: Path, run_id: str) -> int:
    """The last round in the offline files of W&B; a killed process loses its last seconds."""
    files = (out / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    records = (record for path in files for record in _wandb_records(path))
    return max((record.history.step.num for record in records if record.HasField("history")), default=0)


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records in an offline file of W&B."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]

    return map(Record.FromString, leveldb_frames(path))


def mlflow(out: Path, config: Mapping[str, Any]) -> Tracker:
    """Opens a run of MLflow."""
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

    client, run_id = mlflow.MlflowClient(), _read(out / "mlflow.id")
    last: dict[str, int] = {}
    if run_id is None:
        experiment = mlflow.set_experiment("fedjax_masks")
        run_id = client.create_run(experiment.experiment_id, run_name=out.name).info.run_id
        (out / "mlflow.id").write_text(run_id, "utf-8")
    else:
        for name in client.get_run(run_id).data.metrics:
            last[name] = max(entry.step for entry in client.get_metric_history(run_id, name))
        client.update_run(run_id, status="RUNNING")

    def log(record: Record) -> None:
        now, step = int(time.time() * 1000), record["round"]
        values = {name: value for name, value in scalars(record).items() if step > last.get(name, 0)}
        client.log_batch(run_id, [Metric(*item, now, step) for item in values.items()])
        for name in values:
            last[name] = step

    def close(code: int) -> None:
        client.set_terminated(run_id, "FINISHED" if code == 0 else "KILLED" if code > 128 else "FAILED")

    return Tracker(log, lambda config: client.log_dict(run_id, dict(config), "config.json"), close)


def _check_mlflow() -> None:
    # MLflow's default of 7 retries waits four minutes for an absent server, at every record.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.MlflowClient().search_experiments(max_results=1)


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


BACKENDS: Mapping[str, Backend] = {
    "mlflow": Backend(
        mlflow,
        _check_mlflow,
        "mlflow",
        "set MLFLOW_TRACKING_URI, such as sqlite:///mlflow.db",
        ("mlflow.id",),
    ),
    "tensorboard": Backend(
        tensorboard,
        lambda: None,
        "tensorboardX",
        "the run directory must be writable",
        ("tensorboard",),
    ),
    "wandb": Backend(
        wandb,
        _check_wandb,
        "wandb",
        "set WANDB_API_KEY, or WANDB_MODE=offline to send the run later",
        ("wandb", "wandb.id"),
    ),
}
