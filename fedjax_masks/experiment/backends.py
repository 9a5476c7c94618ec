"""Tracking backends: TensorBoard, Weights & Biases, MLflow.

A backend is a function that opens a :class:`Tracker`, and one line in :data:`BACKENDS`. Its package is
imported only when it is used; what the package reads from the environment (``WANDB_MODE=offline``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``) is left to it.

Every backend is asked for the rounds that it holds when a run is opened again, and leaves out records of
these rounds: a killed run has logged rounds behind its last checkpoint, and runs them again.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Tracker(NamedTuple):
    """One run at one backend.

    Attributes:
      log: Takes a record, a line of ``metrics.jsonl``; those that the backend holds are left out.
      describe: Takes the content of ``config.json``, complete once the program is known.
      close: Takes the run's exit code: 0 for a run that has finished, 128 plus a signal's number for one
        that a signal has interrupted and that can be resumed, another one for a failure.
    """

    log: Callable[[Record], None]
    describe: Callable[[Mapping[str, Any]], None]
    close: Callable[[int], None]


class Backend(NamedTuple):
    """A backend.

    Attributes:
      open: Opens, or opens again, the tracker of the run in a directory; given also the configuration.
      check: Raises an exception where the backend cannot be reached, or has no key.
      package: Needed package.
      remedy: Advice where ``check`` or ``open`` raise.
      files: Names of the files in the run directory.
    """

    open: Callable[[Path, Mapping[str, Any]], Tracker]
    check: Callable[[], None]
    package: str
    remedy: str
    files: tuple[str, ...]


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by name, all but the round; ``extra`` behind a slash.

    >>> scalars({"round": 2, "train_loss": 0.5, "density": None, "extra": {"flips": 0.1}})
    {'train_loss': 0.5, 'extra/flips': 0.1}
    """
    extra = {f"extra/{name}": value for name, value in record.get("extra", {}).items()}
    own = {name: value for name, value in record.items() if name not in ("round", "extra")}
    return {name: float(value) for name, value in (own | extra).items() if value is not None}


def tensorboard(out: Path, config: Mapping[str, Any]) -> Tracker:
    """Event files under ``tensorboard/``."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import text

    folder = out / "tensorboard"
    folder.mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    held = max((Event.FromString(frame).step for path in before for frame in _event_frames(path)), default=0)
    # SummaryWriter hands events to a thread: a killed process would lose two minutes of them, and a full
    # disk would block the run for ever. Without a suffix, two files of one second would be one.
    writer = EventsWriter(str(folder / "events"), f".{len(before)}")

    def write(step: int, summary: Any) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    def log(record: Record) -> None:
        nonlocal held
        if record["round"] > held:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(record).items()]
            write(record["round"], Summary(value=values))
            held = record["round"]

    def describe(config: Mapping[str, Any]) -> None:
        if not held:
            write(0, text("config", f"```json\n{json.dumps(config, indent=2)}\n```"))

    def close(code: int) -> None:
        writer.close()

    return Tracker(log, describe, close)


def _event_frames(path: Path) -> Iterator[bytes]:
    """The whole events in a file of TensorBoard: a length of 8 bytes, its checksum, data, their checksum."""
    content, start = path.read_bytes(), 0
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 8], "little")
        if end + 4 <= len(content):
            yield content[start + 12 : end]
        start = end + 4


def wandb(out: Path, config: Mapping[str, Any]) -> Tracker:
    """A run of Weights & Biases of the run's own."""
    import wandb  # pyright: ignore[reportMissingImports]

    known = _read(out / "wandb.id") or secrets.token_hex(4)
    (out / "wandb.id").write_text(known, "utf-8")
    run = wandb.init(
        dir=str(out),
        name=out.name,
        id=known,
        config=dict(config),
        allow_val_change=True,
        resume="allow",
        reinit="create_new",  # else the runs of a sweep's program would all be the first one
    )
    held = max(run.starting_step - 1, _wandb_offline(out, known))

    def log(record: Record) -> None:
        nonlocal held
        if record["round"] > held:
            run.log(scalars(record), step=record["round"], commit=True)
            held = record["round"]

    def close(code: int) -> None:
        if code > 128:
            run.mark_preempting()  # W&B's word for a run that will be resumed
        run.finish(exit_code=code)

    return Tracker(log, lambda config: run.config.update(dict(config), allow_val_change=True), close)


def _check_wandb() -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
    if online and not wandb.login(prompt=False):  # which verifies a key
        raise PermissionError("no API key is configured")


def _wandb_offline(out: Path, known: str) -> int:
    """The last round in the files that W&B wrote offline; a killed process loses its last seconds."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]

    files = (out / "wandb").glob(f"offline-run-*/run-{known}.wandb")
    records = (Record.FromString(frame) for path in files for frame in _leveldb_frames(path))
    return max((record.history.step.num for record in records if record.HasField("history")), default=0)


def _leveldb_frames(path: Path) -> Iterator[bytes]:
    """The whole records of a log in LevelDB's format, behind W&B's own 7 bytes.

    Blocks of 32 KiB hold pieces: a checksum of 4 bytes, a length of 2, and the kind: 1 is whole, 2 to 4 are
    the first, a middle and the last piece of a record. Fewer than 7 bytes at the end of a block are unused.
    """
    content, start, record = path.read_bytes(), 7, b""
    while start + 7 <= len(content):
        left = 32768 - start % 32768
        if left < 7:
            start += left
            continue
        kind, end = content[start + 6], start + 7 + int.from_bytes(content[start + 4 : start + 6], "little")
        if kind not in (1, 2, 3, 4) or end > len(content):
            return
        record, start = record + content[start + 7 : end], end
        if kind in (1, 4):
            yield record
            record = b""


def mlflow(out: Path, config: Mapping[str, Any]) -> Tracker:
    """A run of MLflow."""
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

    client, known = mlflow.MlflowClient(), _read(out / "mlflow.id")
    held: dict[str, int] = {}
    if known is None:
        experiment = mlflow.set_experiment("fedjax_masks")
        known = client.create_run(experiment.experiment_id, run_name=out.name).info.run_id
        (out / "mlflow.id").write_text(known, "utf-8")
    else:
        for name in client.get_run(known).data.metrics:
            held[name] = max(entry.step for entry in client.get_metric_history(known, name))
        client.update_run(known, status="RUNNING")

    def log(record: Record) -> None:
        now, step = int(time.time() * 1000), record["round"]
        values = {name: value for name, value in scalars(record).items() if step > held.get(name, 0)}
        client.log_batch(known, [Metric(*item, now, step) for item in values.items()])
        for name in values:
            held[name] = step

    def close(code: int) -> None:
        client.set_terminated(known, "FINISHED" if code == 0 else "KILLED" if code > 128 else "FAILED")

    return Tracker(log, lambda config: client.log_dict(known, dict(config), "config.json"), close)


def _check_mlflow() -> None:
    # MLflow's default of 7 retries waits for a server that is not there for four minutes, at every record.
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
        "MLFLOW_TRACKING_URI says where it is, such as sqlite:///mlflow.db",
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
