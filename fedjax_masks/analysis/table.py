"""The headline numbers of several runs, side by side."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.analysis.records import (
    MEGABYTE,
    RunRecord,
    algorithm_name,
    client_accuracy,
    last,
    number,
    per_client_round,
    rounds_done,
    setting,
    total_bytes,
)

Row = dict[str, Any]

NOT_APPLICABLE = "n/a"


class Table(NamedTuple):
    """A table of the page, the terminal, a CSV and a LaTeX file.

    Attributes:
      slug: A short name, for file names and anchors.
      title: The heading.
      note: How to read it.
      columns: Those to show; the CSV file has everything that is in the rows.
      rows: One mapping per series or run, with ``run`` and ``algorithm``.
    """

    slug: str
    title: str
    note: str
    columns: "Sequence[Column]"
    rows: Sequence[Row]


class Column(NamedTuple):
    """One column of the comparison, for the terminal and the page.

    Attributes:
      title: The heading, with its unit.
      text: Row to text.
      needs: The key that some row must have for the column to be shown at all.
      best: ``max`` or ``min`` where one end of the scale is better.
    """

    title: str
    text: Callable[[Row], str]
    needs: str
    best: Callable[[Sequence[float]], float] | None = None


def comparison_table(runs: Sequence[RunRecord]) -> list[Row]:
    """The headline numbers, one row per run.

    Args:
      runs: The runs.

    Returns:
      One mapping per run: ``run``, ``algorithm``, ``model``, ``data``, ``partition``, ``seed``;
      ``rounds`` (completed), ``rounds_asked``; accuracies in [0, 1] at the last evaluation:
      ``personal_accuracy``, ``personal_p10``, ``personal_p50``, ``personal_p90`` (percentiles of
      the clients), ``personal_writeback``, ``global_accuracy``; ``mb_up`` and ``mb_down``: mean MB
      (1e6 bytes) per client and round;
      ``mb_total``: MB of all clients over all rounds, both directions; ``mb_setup``: MB that
      each device got once; ``ratio``: bytes per client and round over those of the FedAvg runs
      on the same data, if possible with the same model; ``client_gflops``: mean 1e9 FLOPs
      per client and round; ``sim_seconds`` and ``energy_joules``: of all rounds, of all clients;
      ``rounds_per_second``. None where a figure does not apply.
    """
    rows = [_row(run) for run in runs]
    for row in rows:
        row["ratio"] = _ratio(row, rows)
    return rows


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a comparison: those in which some run has a value."""
    return [column for column in _COLUMNS if any(row.get(column.needs) is not None for row in rows)]


def is_best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether a run leads in a column; never where the runs are on different data."""
    present = [other[column.needs] for other in rows if other[column.needs] is not None]
    if column.best is None or len(set(present)) < 2 or len({other.get("data") for other in rows}) > 1:
        return False
    return row[column.needs] == column.best(present)


def slug(*words: str) -> str:
    """Words as the name of a file and of an anchor.

    >>> slug("target-global", "digits, shards:2"), slug("target-global", "")
    ('target-global-digits-shards-2', 'target-global')
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def percent(value: float | None, half_width: float | None = None) -> str:
    """An accuracy in [0, 1] as a percentage, with its confidence interval where that is known.

    >>> percent(0.9312), percent(0.9312, 0.015), percent(None)
    ('93.1 %', '93.1 ± 1.5 %', 'n/a')
    """
    if value is None:
        return NOT_APPLICABLE
    return f"{100 * value:.1f} %" if half_width is None else f"{100 * value:.1f} ± {100 * half_width:.1f} %"


def quantity(value: float | None) -> str:
    """A number to three significant digits, without an exponent where it can be read without.

    >>> quantity(0.01), quantity(12), quantity(1234.5), quantity(0), quantity(3e-7), quantity(None)
    ('0.0100', '12.0', '1,234', '0', '3.00e-07', 'n/a')
    """
    if value is None:
        return NOT_APPLICABLE
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.0001 else f"{value:.2e}"


def si(value: float, unit: str) -> str:
    """A quantity to three significant digits, with an SI prefix; seconds, which nobody counts so, without.

    >>> si(12_345_678, "B"), si(0.0, "J"), si(950.0, "s")
    ('12.3 MB', '0 J', '950 s')
    """
    if unit == "s":
        return f"{quantity(value)} s"
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = max((n for n in range(len(prefixes)) if abs(value) >= 0.9995 * 1000**n), default=0)
    scaled = value / 1000**power
    text = f"{scaled:.0f}" if abs(scaled) >= 99.95 or value == 0 else f"{scaled:#.3g}"
    return f"{text} {prefixes[power]}{unit}"


def _row(run: RunRecord) -> Row:
    totals = total_bytes(run)
    name = setting(run, "data", "name")
    return {
        "run": run.name,
        "algorithm": algorithm_name(run),
        "model": _text(setting(run, "model", "name")),
        "data": _text(name),
        "partition": _text(setting(run, "data", "partition")),
        "seed": _text(run.config.get("seed")),
        "rounds": rounds_done(run),
        "rounds_asked": run.config.get("rounds"),
        "personal_accuracy": last(run, "personal_accuracy_mean"),
        "personal_p10": last(run, "personal_accuracy_p10"),
        "personal_p50": float(np.median(values)) if (values := client_accuracy(run)).size else None,
        "personal_p90": last(run, "personal_accuracy_p90"),
        "personal_writeback": last(run, "personal_accuracy_writeback"),
        "global_accuracy": last(run, "global_accuracy"),
        "mb_up": _scaled(per_client_round(run, "bytes_up_total"), MEGABYTE),
        "mb_down": _scaled(per_client_round(run, "bytes_down_total"), MEGABYTE),
        "mb_total": _scaled(_finite(totals[-1]) if totals.size else None, MEGABYTE),
        "mb_setup": _scaled(_finite(number(run.summary.get("setup_bytes"))) or None, MEGABYTE),
        "client_gflops": _scaled(per_client_round(run, "client_flops_total"), 1e9),
        "sim_seconds": last(run, "sim_seconds"),
        "energy_joules": last(run, "energy_joules"),
        "rounds_per_second": _finite(number(run.summary.get("rounds_per_second"))),
    }


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Bytes per client and round over the mean of the FedAvg runs that can be compared."""
    baselines = [other for other in rows if other["algorithm"] == "fedavg" and other["data"] == row["data"]]
    same_model = [other for other in baselines if other["model"] == row["model"]]
    costs = [cost for other in same_model or baselines if (cost := _traffic(other))]
    own = _traffic(row)
    return None if own is None or not costs else own * len(costs) / sum(costs)


def _traffic(row: Row) -> float | None:
    """MB per client and round, both directions."""
    return None if row["mb_up"] is None or row["mb_down"] is None else row["mb_up"] + row["mb_down"]


def _finite(value: float) -> float | None:
    return float(value) if value == value and abs(value) != float("inf") else None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _accuracy(key: str) -> Callable[[Row], str]:
    """Of a column of accuracies: the mean, over seeds with its confidence interval."""
    return lambda row: percent(row[key], row.get(f"{key}_ci95"))


def _quantity(key: str) -> Callable[[Row], str]:
    return lambda row: quantity(row[key])


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: row[key] or NOT_APPLICABLE


def _clients(row: Row) -> str:
    """The 10th, 50th and 90th percentile of the clients' accuracies."""
    values = [row[f"personal_p{rank}"] for rank in (10, 50, 90)]
    return " / ".join("?" if value is None else f"{100 * value:.0f}" for value in values) + " %"


def _rounds(row: Row) -> str:
    """Rounds completed, and those asked for where the run has not got there."""
    done, asked = row["rounds"], row["rounds_asked"]
    return f"{done} of {asked}" if isinstance(asked, int) and done < asked else str(done)


_COLUMNS = (
    Column("personal accuracy", _accuracy("personal_accuracy"), "personal_accuracy", max),
    Column("clients' p10 / p50 / p90", _clients, "personal_p10"),
    Column("personal after write-back", _accuracy("personal_writeback"), "personal_writeback"),
    Column("global accuracy", _accuracy("global_accuracy"), "global_accuracy", max),
    Column("on the Pareto front", _plain("front"), "front"),
    Column("MB up / client·round", _quantity("mb_up"), "mb_up", min),
    Column("MB down / client·round", _quantity("mb_down"), "mb_down", min),
    Column("MB in total", _quantity("mb_total"), "mb_total"),
    Column("bytes ÷ FedAvg's", _quantity("ratio"), "ratio", min),
    Column("MB setup / device", _quantity("mb_setup"), "mb_setup"),
    Column("GFLOP / client·round", _quantity("client_gflops"), "client_gflops", min),
    Column("simulated seconds", _quantity("sim_seconds"), "sim_seconds", min),
    Column("joules of all clients", _quantity("energy_joules"), "energy_joules", min),
    Column("rounds", _rounds, "rounds"),
    Column("rounds/s", _quantity("rounds_per_second"), "rounds_per_second"),
    Column("model", _plain("model"), "model"),
    Column("data", _plain("data"), "data"),
    Column("seed", _plain("seed"), "seed"),
)
