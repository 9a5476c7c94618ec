"""The headline numbers of several runs, side by side."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.analysis.records import (
    MEGABYTE,
    RunRecord,
    algorithm_name,
    client_accuracy,
    clients_trained,
    is_diverged,
    last,
    number,
    per_client_round,
    rounds_done,
    seeds_of,
    setting,
    total_bytes,
)
from fedjax_masks.analysis.wording import DIVERGED, NOT_APPLICABLE, as_text, percent, quantity

Row = dict[str, Any]


class Table(NamedTuple):
    """A table of the page, the terminal, a CSV and a LaTeX file.

    Attributes:
      slug: A short name, for file names and anchors.
      title: The heading.
      note: How to read it.
      columns: Those to show; the CSV file has everything that is in the rows.
      rows: One mapping per series or run, with ``run`` and ``algorithm``.
      remarks: Warnings that belong to the numbers wherever they are shown, one line each.
    """

    slug: str
    title: str
    note: str
    columns: "Sequence[Column]"
    rows: Sequence[Row]
    remarks: Sequence[str] = ()


class Column(NamedTuple):
    """One column of the comparison, for the terminal and the page.

    Attributes:
      title: The heading, with its unit.
      text: Row to text.
      needs: The key that some row must have for the column to be shown at all.
      best: ``max`` or ``min`` where one end of the scale is better.
      shown: Whether the rows call for the column, besides having its key.
    """

    title: str
    text: Callable[[Row], str]
    needs: str
    best: Callable[[Sequence[float]], float] | None = None
    shown: Callable[[Sequence[Row]], bool] = lambda rows: True


def comparison_table(runs: Sequence[RunRecord]) -> list[Row]:
    """The headline numbers, one row per run.

    Args:
      runs: The runs.

    Returns:
      One mapping per run: ``run``, ``algorithm``, ``model``, ``data``, ``partition``, ``seed``,
      ``data_seed``; ``rounds`` (completed), ``rounds_asked``; ``diverged``, 1 or 0; accuracies in [0, 1]
      at the last evaluation, over the clients that have trained: ``personal_accuracy``,
      ``personal_p10``, ``personal_p50``, ``personal_p90`` (percentiles of the clients),
      ``personal_writeback``; ``personal_accuracy_all``, over all clients; ``clients_seen`` of
      ``num_clients``, those that have trained; ``global_accuracy``; ``mb_up`` and ``mb_down``: mean MB
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
    """The columns of a comparison: those in which some run has a value, and that the rows call for."""
    return [
        column
        for column in _COLUMNS
        if any(row.get(column.needs) is not None for row in rows) and column.shown(rows)
    ]


def is_best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether a run leads in a column; never a diverged one, or where the runs are on different data."""
    sound = [other for other in rows if not other.get("diverged")]
    present = [other[column.needs] for other in sound if other[column.needs] is not None]
    if column.best is None or len(set(present)) < 2 or len({other.get("data") for other in rows}) > 1:
        return False
    return not row.get("diverged") and row[column.needs] == column.best(present)


def _row(run: RunRecord) -> Row:
    totals = total_bytes(run)
    name, trained, seeds = setting(run, "data", "name"), clients_trained(run), seeds_of(run)
    return {
        "run": run.name,
        "algorithm": algorithm_name(run),
        "model": _text(setting(run, "model", "name")),
        "data": _text(name),
        "partition": _text(setting(run, "data", "partition")),
        "seed": _text(seeds.get("seed")),
        "data_seed": _text(seeds.get("data.seed")),
        "rounds": rounds_done(run),
        "rounds_asked": run.config.get("rounds"),
        "diverged": int(is_diverged(run)),
        "personal_accuracy": last(run, "personal_accuracy_mean_seen"),
        "personal_accuracy_all": last(run, "personal_accuracy_mean"),
        "clients_seen": float(trained[0]) if trained else None,
        "num_clients": trained[1] if trained else None,
        "personal_p10": last(run, "personal_accuracy_p10_seen"),
        "personal_p50": float(np.median(values)) if (values := client_accuracy(run)).size else None,
        "personal_p90": last(run, "personal_accuracy_p90_seen"),
        "personal_writeback": last(run, "personal_accuracy_writeback_seen"),
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
    sound = [other for other in rows if other["algorithm"] == "fedavg" and not other["diverged"]]
    baselines = [other for other in sound if other["data"] == row["data"]]
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
    return None if value is None else as_text(value)


def _accuracy(key: str) -> Callable[[Row], str]:
    """Of a column of accuracies: the mean, over seeds with its confidence interval."""

    def text(row: Row) -> str:
        void = row["diverged"] and row[key] is not None
        return DIVERGED if void else percent(row[key], row.get(f"{key}_ci95"))

    return text


def _quantity(key: str) -> Callable[[Row], str]:
    return lambda row: quantity(row[key])


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: row[key] or NOT_APPLICABLE


def _clients(row: Row) -> str:
    """The 10th, 50th and 90th percentile of the clients' accuracies."""
    values = [row[f"personal_p{rank}"] for rank in (10, 50, 90)]
    if all(value is None for value in values):
        return NOT_APPLICABLE
    if row["diverged"]:
        return DIVERGED
    return " / ".join("?" if value is None else f"{100 * value:.0f}" for value in values) + " %"


def _trained(row: Row) -> str:
    """How many clients have trained; of several seeds the mean."""
    seen = row["clients_seen"]
    return NOT_APPLICABLE if seen is None else f"{seen:.{0 if seen % 1 == 0 else 1}f} of {row['num_clients']}"


def some_untrained(rows: Sequence[Row]) -> bool:
    """Whether in some row not all clients have trained."""
    known = (row for row in rows if row["clients_seen"] is not None)
    return any(row["num_clients"] != row["clients_seen"] for row in known)


def _is_diverged(row: Row) -> str:
    if not row["diverged"]:
        return "no"
    seeds = row.get("seeds", 1)
    return "yes" if seeds == 1 else f"{row['diverged']} of {seeds} seeds"


def _rounds(row: Row) -> str:
    """Rounds completed, and those asked for where the run has not got there."""
    done, asked = row["rounds"], row["rounds_asked"]
    return f"{done} of {asked}" if isinstance(asked, int) and done < asked else str(done)


_COLUMNS = (
    Column("diverged", _is_diverged, "diverged", shown=lambda rows: any(row["diverged"] for row in rows)),
    Column("personal accuracy", _accuracy("personal_accuracy"), "personal_accuracy", max),
    Column(
        "personal, all clients",
        _accuracy("personal_accuracy_all"),
        "personal_accuracy_all",
        shown=some_untrained,
    ),
    Column("clients that trained", _trained, "clients_seen"),
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
    Column("run seed", _plain("seed"), "seed"),
    Column("data.seed", _plain("data_seed"), "data_seed"),
)
