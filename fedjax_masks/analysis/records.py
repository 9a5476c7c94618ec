"""Records of runs: configuration, figures over rounds, summary."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.core.intervals import mean_over_period

MEGABYTE = 1e6
_SEEN = "_seen"


class RunRecord(NamedTuple):
    """One run.

    Attributes:
      name: The name of the run: that of its directory.
      config: The complete configuration, nested as in ``config.json``.
      records: One flat mapping per evaluated round, in the order of rounds; ``round`` is the number of
        completed rounds, ``extra`` holds the algorithm's own figures.
      summary: The content of ``summary.json``; empty until the run has finished.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]


def column(run: RunRecord, key: str) -> np.ndarray:
    """One figure over the evaluated rounds.

    Records of older versions lack the figures of the clients that have trained (keys that end in ``_seen``);
    the figures of all clients replace these.

    Args:
      run: The run.
      key: A key of the records or of their ``extra``.

    Returns:
      ``float64[evaluations]``: the values; NaN where the figure is absent or does not apply.

    >>> run = RunRecord("a", {}, [{"round": 1, "density": None}, {"round": 2, "density": 0.5}], {})
    >>> column(run, "density").tolist()
    [nan, 0.5]
    """
    return np.array([number(_figure(record, key)) for record in run.records], np.float64)


def _figure(record: Mapping[str, Any], key: str) -> object:
    merged = {**(record.get("extra") or {}), **record}
    return merged[key] if key in merged else merged.get(key.removesuffix(_SEEN))


def last(run: RunRecord, key: str) -> float | None:
    """The last finite value of a figure, or None."""
    values = column(run, key)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def settled(run: RunRecord, key: str) -> float | None:
    """The mean of an accuracy over the last evaluations of a period of the algorithm, or None.

    Most algorithms have a period of one round, and then this is the last value.
    """
    values, rounds = column(run, key), column(run, "round")
    finite = np.isfinite(values) & np.isfinite(rounds)
    period = run.summary.get("period")
    return mean_over_period(
        rounds[finite].astype(int).tolist(), values[finite].tolist(), period if isinstance(period, int) else 1
    )


def number(value: object) -> float:
    """A JSON value as a float; NaN where it is no number, or a number too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value) if abs(value) < 1e300 else float("nan")


def rounds_done(run: RunRecord) -> int:
    """The number of rounds completed at the last evaluation."""
    return int(last(run, "round") or 0)


def total_bytes(run: RunRecord) -> np.ndarray:
    """Bytes that all clients and the server sent up to each evaluation: ``float64[evaluations]``."""
    return column(run, "bytes_up_total") + column(run, "bytes_down_total")


def per_client_round(run: RunRecord, key: str) -> float | None:
    """A total per client and round, in the mean over all rounds.

    The mean includes rounds without evaluation, as rounds of some algorithms differ in kind.

    Args:
      run: The run.
      key: The key of the total, such as ``bytes_up_total``.
    """
    total, rounds = last(run, key), rounds_done(run)
    sizes = column(run, "cohort_size")
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    cohort = float(sizes.mean()) if sizes.size else number(run.config.get("cohort"))
    if total is None or rounds == 0 or not cohort > 0:
        return None
    return total / (rounds * cohort)


def client_accuracy(run: RunRecord) -> np.ndarray:
    """Final personal accuracies of the clients that have trained, ascending.

    Clients without test data are left out. All other clients count where a summary lacks ``client_seen``.
    """
    values = np.array([number(value) for value in run.summary.get("client_accuracy") or []], np.float64)
    trained = np.array(run.summary.get("client_seen") or np.ones(values.shape), bool)
    return np.sort(values[trained & np.isfinite(values)])


def clients_trained(run: RunRecord) -> tuple[int, int] | None:
    """The numbers of clients that have trained and of all clients; None where the records lack them."""
    trained, total = last(run, "clients_seen"), last(run, "num_clients")
    return None if trained is None or total is None else (int(trained), int(total))


def is_diverged(run: RunRecord) -> bool:
    """Whether a run had diverged at its last evaluation."""
    return any(record.get("diverged") is True for record in (*run.records[-1:], run.summary))


def seeds_of(run: RunRecord) -> dict[str, Any]:
    """All seeds of the configuration, by key.

    >>> seeds_of(RunRecord("a", {"seed": 0, "data": {"name": "digits", "seed": 1}}, [], {}))
    {'seed': 0, 'data.seed': 1}
    """
    return {key: value for key, value in flatten(run.config).items() if key.split(".")[-1] == "seed"}


def layer_densities(run: RunRecord) -> dict[str, np.ndarray]:
    """The mask density ``float64[evaluations]`` of each layer, by the layer's name."""
    keys = dict.fromkeys(key for record in run.records for key in record.get("extra") or {})
    layers = {key.removeprefix("density/"): column(run, key) for key in keys if key.startswith("density/")}
    return {layer: values for layer, values in layers.items() if np.isfinite(values).any()}


def setting(run: RunRecord, section: str, key: str) -> object:
    """A value in a section of the configuration, or None."""
    inner = run.config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


def data_settings(run: RunRecord) -> dict[str, Any]:
    """Settings of the data that comparable runs share: all but seeds and folders."""
    settings = run.config.get("data")
    if not isinstance(settings, Mapping):
        return {}
    incidental = ("seed", "dir", "cache_dir")
    # Configurations of older versions lack these keys, and mean the defaults.
    defaults = {"scale": "auto", "channels": "auto", "relabel": False, "classes": None}
    return {k: v for k, v in settings.items() if k not in incidental and (k, v) not in defaults.items()}


def data_title(run: RunRecord) -> str:
    """The names of the data set and its partition."""
    return f"{setting(run, 'data', 'name')}, {setting(run, 'data', 'partition') or 'iid'}"


def algorithm_name(run: RunRecord) -> str:
    """The name of the algorithm; that of the run where the configuration lacks it."""
    return str(setting(run, "algorithm", "name") or run.name)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration as a flat one with dotted keys.

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
