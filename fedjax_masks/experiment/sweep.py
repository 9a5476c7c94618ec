"""Many runs from one file: a grid over algorithms, seeds and options.

Runs that differ only in their seeds and in numeric options that the algorithm can take as traced values
are one compiled program; the others follow each other. Every run has its own directory, as from
:func:`fedjax_masks.experiment.experiment.run_experiment`.
"""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.analysis.loading import read_object
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.core.intervals import half_width, interval
from fedjax_masks.core.progress import say, silence
from fedjax_masks.core.trees import flat
from fedjax_masks.experiment import (
    build,
    checkpoint,
    experiment,
    lock,
    platforms,
    run_directory,
    signals,
    trackers,
)
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.grid import Job, read_sweep
from fedjax_masks.experiment.loop import chunk_length
from fedjax_masks.simulation import Batch, can_trace, check_cohort, make_batch, parse_plan

_FIGURES = (
    *("round", "global_accuracy", "personal_accuracy_mean", "best_global_accuracy"),
    *(
        "best_personal_accuracy_mean",
        "best_personal_accuracy_mean_seen",
        "bytes_up_total",
        "bytes_down_total",
        "setup_bytes",
    ),
    *("client_flops", "sim_seconds", "energy_joules", "wall_seconds"),
    *("personal_accuracy_mean_seen", "clients_seen", "num_clients", "diverged"),
)
_COLUMNS = (
    ("global_accuracy", 100, 1, "global, %"),
    ("personal_accuracy_mean_seen", 100, 1, "personal, %"),
    ("bytes_up_total", 1e-6, 2, "MB up"),
    ("bytes_down_total", 1e-6, 2, "MB down"),
)
_TRACED = ("algorithm.", "server_optimizer.")


class Group(NamedTuple):
    """Runs of one program.

    Attributes:
      jobs: The runs.
      traced: The options in which they differ.
      apart: Options that keep them apart from others, because the algorithm looks at their values.
      make: Builds the algorithm of any of them.
      task: The data of all.
    """

    jobs: list[Job]
    traced: list[str]
    apart: list[str]
    make: Callable[[Config], FederatedAlgorithm]
    task: Task

    def __str__(self) -> str:
        own, number = self.jobs[0].config.algorithm.name, len(self.jobs)
        reason = f"; apart for {', '.join(self.apart)}: {own} needs to know the value" if self.apart else ""
        if number == 1:
            return f"{self.jobs[0].name}: alone{reason}"
        differ = [
            key for key in ("seed", *self.traced) if len({_flat(job.config)[key] for job in self.jobs}) > 1
        ]
        first = self.jobs[0]
        own_seeds = [f"{key}={v}" for key, v in first.varied.items() if key.endswith(".seed")]
        name = ",".join([first.setting, *own_seeds])
        return f"{name}: {number} runs in one program, over {' and '.join(differ)}{reason}"


def _flat(config: Config) -> dict[str, Any]:
    return flat(as_dict(config))


def group_jobs(jobs: Sequence[Job], rounds_done: Callable[[Job], int] = lambda job: 0) -> list[Group]:
    """Puts together the runs that one program can serve.

    Args:
      jobs: The runs.
      rounds_done: Runs of one program also stand at the same round.

    Raises:
      ValueError: A run cannot be served.
    """
    tasks: dict[str, Task] = {}
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(f"{rounds_done(job)} {_program(job.config)}", []).append(job)
    groups = []
    for some in alike.values():
        config = some[0].config
        data = repr(config.data)
        if data not in tasks:
            tasks[data] = build.load(config)
        task = tasks[data]
        make = build.algorithm_maker(config, task)
        for job in some:
            make(job.config)
        check_cohort(config.cohort, task)
        parse_plan(config.plan, cohort=config.cohort)
        groups += _divide(some, make, task)
    return groups


def _program(config: Config) -> str:
    """Equal for runs that differ only in what may be traced."""
    # Devices are drawn by the seed, and a program belongs to one population.
    free = () if config.devices else ("seed",)
    return repr(
        {
            key: "any" if key in free or (key.startswith(_TRACED) and isinstance(value, float)) else value
            for key, value in _flat(config).items()
        }
    )


def _divide(jobs: list[Job], make: Callable[[Config], FederatedAlgorithm], task: Task) -> list[Group]:
    """Divides runs by the options at whose values the algorithm looks."""
    rows = [_flat(job.config) for job in jobs]
    differ = [key for key in rows[0] if key.startswith(_TRACED) and len({row[key] for row in rows}) > 1]
    config = jobs[0].config

    def traces(keys: list[str]) -> bool:
        return can_trace(lambda values: make(_with(config, values)), task, keys, cohort=config.cohort)

    apart = [] if traces(differ) else [key for key in differ if not traces([key])]
    divided: dict[tuple[Any, ...], list[Job]] = {}
    for job, row in zip(jobs, rows):
        divided.setdefault(tuple(row[key] for key in apart), []).append(job)
    traced = [key for key in differ if key not in apart]
    return [Group(some, traced, apart, make, task) for some in divided.values()]


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other, possibly traced, values of the algorithm's options."""
    options, server = dict(config.algorithm.options), {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        (options if section == "algorithm" else server)[name] = value
    return dataclasses.replace(
        config,
        algorithm=dataclasses.replace(config.algorithm, options=options),
        server_optimizer=dataclasses.replace(config.server_optimizer, **server),
    )


def run_sweep(
    path: str | Path, out_dir: str | Path, *, resume: bool = False, quiet: bool = False
) -> list[Job]:
    """Runs a sweep and writes its directory: one directory a run, ``runs.csv`` and ``sweep.json``.

    Args:
      path: The sweep's TOML file.
      out_dir: The sweep's directory.
      resume: Skip the runs that have finished in ``out_dir``, and continue the others.
      quiet: Print neither the plan nor progress.

    Returns:
      The runs.

    Raises:
      UserError: The file asks for what cannot be served, or ``out_dir`` holds something else; found
        before anything runs.
    """
    jobs, out = read_sweep(path), Path(out_dir)
    platforms.check()
    with signals.noted() as asked, silence(quiet), experiment.writing([out]):
        if not resume and {file.name for file in out.iterdir()} - {lock.NAME}:
            raise UserError(f"out={str(out)!r}: is not empty; --resume continues the sweep in it")
        _check_own(out, jobs)
        with user_errors():
            for job in jobs:
                run_directory.open_directory(out / job.name, job.config, resume=resume)
            missing = [job for job in jobs if not run_directory.is_finished(out / job.name)]
            trackers.check(sorted({name for job in missing for name in trackers.parse(job.config.log)}))
            groups = group_jobs(missing, lambda job: run_directory.rounds_saved(out / job.name))
        for group in groups:
            say(f"plan: {group}")
        write_table(jobs, out)
        for group in groups:
            if asked():
                signals.end(asked())
            _run_group(group, out, quiet=quiet, asked=asked)
            write_table(jobs, out)
    return jobs


def _check_own(out: Path, jobs: Sequence[Job]) -> None:
    """Raises UserError where a directory holds a single run, or a sweep of other runs than these."""
    if (out / run_directory.CONFIG).exists():
        raise UserError(f"out={str(out)!r}: must be the directory of a sweep; it holds a single run")
    path = out / "sweep.json"
    others = set(read_object(path).get("runs", {})) - {job.name for job in jobs} if path.exists() else set()
    if others:
        raise UserError(
            f"out={str(out)!r}: must be the directory of this sweep; it holds {min(others)!r}, "
            "which the file does not ask for"
        )


def _run_group(group: Group, out: Path, *, quiet: bool, asked: Callable[[], int]) -> None:
    """Runs in one program what fits into memory together."""
    configs, outs = [job.config for job in group.jobs], [out / job.name for job in group.jobs]
    batch = _batch(group, configs) if len(configs) > 1 else None
    if batch is None:
        for config, directory in zip(configs, outs):
            if asked():
                signals.end(asked())
            experiment.run_experiment(config, directory, resume=True, quiet=quiet)
        return
    say(experiment.plan_line(batch.plan, configs[0], group.task))
    with experiment.writing(outs), ExitStack() as stack:
        setups = [
            experiment.make_setup(
                directory,
                config,
                run_directory.open_directory(directory, config, resume=True),
                group.task,
                stack.enter_context(experiment.tracked(directory, config)),
            )
            for directory, config in zip(outs, configs)
        ]
        experiment.run_in(setups, batch, quiet=quiet, asked=asked)


def _batch(group: Group, configs: Sequence[Config]) -> Batch | None:
    """The runs' program; None where not even one of them fits into memory beside the others' states."""
    config, rows = configs[0], [_flat(config) for config in configs]
    if "host" in (config.storage.clients, config.storage.data):
        say("plan: one run after the other; the host keeps what belongs to one run")
        return None
    try:
        return make_batch(
            lambda values: group.make(_with(config, values)),
            group.task,
            values={key: [row[key] for row in rows] for key in group.traced},
            seeds=[own.seed for own in configs],
            cohort=config.cohort,
            chunk=chunk_length(config.eval_every),
            plan=config.plan,
            population=build.population(config, group.task),
            eval_clients=config.eval_clients,
        )
    except MemoryError as error:
        say(f"plan: one run after the other; {error}")
        return None


def write_table(jobs: Sequence[Job], out: Path) -> None:
    """Writes ``runs.csv``, a row for each run that has finished, and ``sweep.json``, figures over seeds.

    Args:
      jobs: The runs.
      out: The sweep's directory.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job.varied))
    finished = [job for job in jobs if run_directory.is_finished(out / job.name)]
    rows = []
    for job in finished:
        summary = _figures(out / job.name / run_directory.SUMMARY)
        flat_config = _flat(job.config)
        own = {"run": job.name, "setting": job.setting, "algorithm.name": job.config.algorithm.name}
        own |= {key: flat_config.get(key) for key in keys} | {"seed": job.config.seed}
        rows.append(own | summary)
    text = io.StringIO()
    header = ["run", "setting", "algorithm.name", *keys, "seed", *_FIGURES]
    table = csv.DictWriter(text, list(dict.fromkeys(header)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    checkpoint.write_atomically(out / "runs.csv", text.getvalue())
    content = {
        "runs": dict.fromkeys((job.name for job in jobs), False) | {row["run"]: True for row in rows},
        "settings": {setting: over_seeds(some) for setting, some in _by_setting(rows).items()},
    }
    checkpoint.write_atomically(out / "sweep.json", json.dumps(content, indent=2))


def _figures(path: Path) -> dict[str, Any]:
    """The figures of a summary."""
    content = read_object(path)
    found = {key: content.get(key) for key in _FIGURES}
    for key, value in found.items():
        if not (value is None or isinstance(value, (int, float))):
            raise UserError(f"{path}: {key}={value!r}: must be a number or null; the file is damaged")
    return found


def _by_setting(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each figure, the mean over rows that have it, and half of its 95 % confidence interval."""
    found: dict[str, Any] = {"seeds": len(rows)}
    for key in _FIGURES:
        values = [row[key] for row in rows if row[key] is not None]
        half = half_width(values) if len(values) > 1 else None
        found[key] = {"mean": statistics.fmean(values), "half_width": half} if values else None
    return found


def print_sweep(out_dir: str | Path) -> None:
    """Prints the table of a sweep: for each setting, mean ± 95 % confidence interval over seeds."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with open(Path(out_dir) / "runs.csv", encoding="utf-8", newline="") as file:
        settings = _by_setting(list(csv.DictReader(file)))
    caption = (
        "Accuracies at the end, personal: of the clients that trained; bytes in total; ±: 95 % confidence "
        "interval over seeds."
    )
    table = Table("", box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.columns[0].overflow = "fold"
    for *_, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for setting, rows in settings.items():
        cells = [_over_seeds(rows, key, scale, digits) for key, scale, digits, _ in _COLUMNS]
        table.add_row(Text("\n".join([setting, *_reservations(rows)])), *cells, str(len(rows)))
    Console().print(table)


def _reservations(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines under a setting's name: runs that diverged, and clients that never trained."""
    diverged, number = sum(row["diverged"] == "True" for row in rows), rows[0]["num_clients"]
    lines = [f"diverged: {diverged} of {len(rows)}"] if diverged else []
    if any(row["clients_seen"] != number for row in rows):
        everybody = _over_seeds(rows, "personal_accuracy_mean", 100, 1)
        lines.append(f"seen {_over_seeds(rows, 'clients_seen', 1, 0)} of {number}; all: {everybody}")
    return lines


def _over_seeds(rows: Sequence[Mapping[str, Any]], key: str, scale: float, digits: int) -> str:
    """A figure for people; without an interval where it is counted and always the same."""
    values = [scale * float(row[key]) for row in rows if row[key]]
    return interval(values if len(set(values)) > 1 else values[:1], digits)
