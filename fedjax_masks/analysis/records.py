"""Runs as records: configuration, figures over rounds, summary."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MEGABYTE = 1e6
_SEEN = "_seen"


class RunRecord(NamedTuple):
    """One run.

    Attributes:
      name: What the run is called: its directory's name.
      config: The complete configuration, nested as in ``config.json``.
      records: One flat mapping per evaluated round, in the order of rounds; ``round`` is the
        number of rounds completed, ``extra`` holds the algorithm's own figures.
      summary: ``summary.json``; empty while the run has not finished.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]


def column(run: RunRecord, key: str) -> np.ndarray:
    """One figure over the evaluated rounds: ``float64[evaluations]``.

    Records of older versions do not tell which clients had trained; there a figure of these is that of
    all clients.

    Args:
      run: The run.
      key: A key of the records or of their ``extra``.

    Returns:
      The values; NaN where the figure is absent or does not apply.

    >>> run = RunRecord("a", {}, [{"round": 1, "density": None}, {"round": 2, "density": 0.5}], {})
    >>> column(run, "density").tolist()
    [nan, 0.5]
    """
    return np.array([number(_figure(record, key)) for record in run.records], np.float64)


def _figure(record: Mapping[str, Any], key: str) -> Any:
    both = {**(record.get("extra") or {}), **record}
    return both[key] if key in both else both.get(key.removesuffix(_SEEN))


def last(run: RunRecord, key: str) -> float | None:
    """The last finite value of a figure, or None."""
    values = column(run, key)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def number(value: Any) -> float:
    """A JSON value as a float; NaN for what is not a number, or one that no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value) if abs(value) < 1e300 else float("nan")


def rounds_done(run: RunRecord) -> int:
    """Rounds completed at the last evaluation."""
    return int(last(run, "round") or 0)


def total_bytes(run: RunRecord) -> np.ndarray:
    """Bytes sent so far by all clients and the server, at each evaluation: ``float64[evaluations]``."""
    return column(run, "bytes_up_total") + column(run, "bytes_down_total")


def per_client_round(run: RunRecord, key: str) -> float | None:
    """A total's share of one client in one round: ``per_client_round(run, "bytes_up_total")``.

    The mean is over all rounds, not only the evaluated ones, so that algorithms whose rounds
    differ in kind are charged what they really spent.
    """
    total, rounds = last(run, key), rounds_done(run)
    sizes = column(run, "cohort_size")
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    cohort = float(sizes.mean()) if sizes.size else number(run.config.get("cohort"))
    if total is None or rounds == 0 or not cohort > 0:
        return None
    return total / (rounds * cohort)


def client_accuracy(run: RunRecord) -> np.ndarray:
    """The personal accuracy at the end of each client that trained, ascending.

    Clients without test data are left out; where a summary does not tell who trained, nobody else is.
    """
    values = np.array([number(value) for value in run.summary.get("client_accuracy") or []], np.float64)
    trained = np.array(run.summary.get("client_seen") or np.ones(values.shape), bool)
    return np.sort(values[trained & np.isfinite(values)])


def clients_trained(run: RunRecord) -> tuple[int, int] | None:
    """The clients that have trained, and all there are; None where the records do not tell."""
    seen, number_of = last(run, "clients_seen"), last(run, "num_clients")
    return None if seen is None or number_of is None else (int(seen), int(number_of))


def is_diverged(run: RunRecord) -> bool:
    """Whether a run had diverged at its last evaluation."""
    return any(found.get("diverged") is True for found in (*run.records[-1:], run.summary))


def seeds_of(run: RunRecord) -> dict[str, Any]:
    """All seeds of the configuration by key: the run's, its partition's.

    >>> seeds_of(RunRecord("a", {"seed": 0, "data": {"name": "digits", "seed": 1}}, [], {}))
    {'seed': 0, 'data.seed': 1}
    """
    return {key: value for key, value in flatten(run.config).items() if key.split(".")[-1] == "seed"}


def layer_densities(run: RunRecord) -> dict[str, np.ndarray]:
    """Mask density of each layer over the evaluated rounds: layer to ``float64[evaluations]``."""
    keys = dict.fromkeys(key for record in run.records for key in record.get("extra") or {})
    found = {key.removeprefix("density/"): column(run, key) for key in keys if key.startswith("density/")}
    return {layer: values for layer, values in found.items() if np.isfinite(values).any()}


def setting(run: RunRecord, section: str, key: str) -> Any:
    """One value of a section of the configuration, or None."""
    inner = run.config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


def data_settings(run: RunRecord) -> dict[str, Any]:
    """Which data and how divided: what runs must share to be compared; without seeds and folders."""
    settings = run.config.get("data")
    if not isinstance(settings, Mapping):
        return {}
    apart = ("seed", "dir", "cache_dir")
    # Runs from before there were these keys are runs with their defaults.
    defaults = {"scale": "auto", "channels": "auto", "relabel": False, "classes": None}
    return {k: v for k, v in settings.items() if k not in apart and (k, v) not in defaults.items()}


def data_title(run: RunRecord) -> str:
    """The data set and its partition, in words."""
    return f"{setting(run, 'data', 'name')}, {setting(run, 'data', 'partition') or 'iid'}"


def algorithm_name(run: RunRecord) -> str:
    """The algorithm's name; the run's own where the configuration does not say."""
    return str(setting(run, "algorithm", "name") or run.name)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration under dotted keys.

    >>> flatten({"data": {"name": "digits"}, "seed": 0})
    {'data.name': 'digits', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat
