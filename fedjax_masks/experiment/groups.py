"""Groups of a sweep's runs, one for each compiled program.

Runs that differ only in their seeds and in numeric options that the algorithm can take as traced values
share a program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.nested import flat
from fedjax_masks.experiment import build
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.grid import Job
from fedjax_masks.simulation import can_trace, check_cohort, parse_plan

_TRACEABLE = ("algorithm.", "server_optimizer.")  # sections


class Group(NamedTuple):
    """Runs of one program.

    Attributes:
      jobs: The runs.
      traced_keys: The keys of options in which the runs differ, as traced values.
      static_keys: The keys of options whose values the algorithm must know; runs of other groups have others.
      make: Builds the algorithm of any of the runs.
      task: The data of all runs.
    """

    jobs: list[Job]
    traced_keys: list[str]
    static_keys: list[str]
    make: Callable[[Config], FederatedAlgorithm]
    task: Task

    def __str__(self) -> str:
        first, number = self.jobs[0], len(self.jobs)
        algorithm, reason = first.config.algorithm.name, ""
        if self.static_keys:
            reason = f"; apart for {', '.join(self.static_keys)}: {algorithm} needs to know the value"
        if number == 1:
            return f"{first.name}: alone{reason}"
        configs = [flat_config(job.config) for job in self.jobs]
        keys = [key for key in ("seed", *self.traced_keys) if len({values[key] for values in configs}) > 1]
        seeds = [f"{key}={value}" for key, value in first.grid_values.items() if key.endswith(".seed")]
        name = ",".join([first.setting, *seeds])
        return f"{name}: {number} runs in one program, over {' and '.join(keys)}{reason}"


def flat_config(config: Config) -> dict[str, Any]:
    """The values of a configuration by dotted keys."""
    return flat(as_dict(config))


def group_jobs(jobs: Sequence[Job], rounds_done: Callable[[Job], int] = lambda job: 0) -> list[Group]:
    """Groups the runs that one program can serve.

    Args:
      jobs: The runs.
      rounds_done: The number of rounds that a run has on disk; runs of one program have the same number.

    Raises:
      ValueError: A run cannot be served.
    """
    tasks: dict[str, Task] = {}
    jobs_by_program: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_by_program.setdefault(f"{rounds_done(job)} {_program(job.config)}", []).append(job)
    groups = []
    for program_jobs in jobs_by_program.values():
        config = program_jobs[0].config
        data = repr(config.data)
        if data not in tasks:
            tasks[data] = build.load(config)
        task = tasks[data]
        make = build.algorithm_maker(config, task)
        for job in program_jobs:
            make(job.config)
        check_cohort(config.cohort, task)
        parse_plan(config.plan, cohort=config.cohort)
        groups += _divide(program_jobs, make, task)
    return groups


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other, possibly traced, values of the algorithm's options.

    Args:
      config: The configuration.
      values: Values by keys of ``algorithm`` and ``server_optimizer``.
    """
    options, server = dict(config.algorithm.options), {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        (options if section == "algorithm" else server)[name] = value
    return dataclasses.replace(
        config,
        algorithm=dataclasses.replace(config.algorithm, options=options),
        server_optimizer=dataclasses.replace(config.server_optimizer, **server),
    )


def _program(config: Config) -> str:
    """A text that is equal for runs which differ only in values that may be traced."""
    # Devices are drawn by the seed, and a program belongs to one population.
    free = () if config.devices else ("seed",)
    return repr(
        {
            key: "any" if key in free or (key.startswith(_TRACEABLE) and isinstance(value, float)) else value
            for key, value in flat_config(config).items()
        }
    )


def _divide(jobs: list[Job], make: Callable[[Config], FederatedAlgorithm], task: Task) -> list[Group]:
    """Divides runs by the options whose values the algorithm must know."""
    configs = [flat_config(job.config) for job in jobs]
    keys = [
        key
        for key in configs[0]
        if key.startswith(_TRACEABLE) and len({values[key] for values in configs}) > 1
    ]
    config = jobs[0].config

    def traces(keys: list[str]) -> bool:
        return can_trace(lambda values: make(with_values(config, values)), task, keys, cohort=config.cohort)

    static_keys = [] if traces(keys) else [key for key in keys if not traces([key])]
    traced_keys = [key for key in keys if key not in static_keys]
    jobs_by_values: dict[tuple[Any, ...], list[Job]] = {}
    for job, values in zip(jobs, configs):
        jobs_by_values.setdefault(tuple(values[key] for key in static_keys), []).append(job)
    return [Group(part, traced_keys, static_keys, make, task) for part in jobs_by_values.values()]
