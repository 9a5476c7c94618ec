"""Tables of figures: rows, columns, and the headline numbers of several runs."""

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
    settled,
    total_bytes,
)
from fedjax_masks.analysis.wording import as_text

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of a table, for the terminal and the page.

    Attributes:
      title: The heading, with its unit.
      text: ``row -> text``: the cell of a row.
      needs: A key; the column is left out where no row has a value for it.
      best: ``max`` or ``min``, where one end of the scale is better.
      shown: ``rows -> bool``: a further condition for the column.
    """

    title: str
    text: Callable[[Row], str]
    needs: str
    best: Callable[[Sequence[float]], float] | None = None
    shown: Callable[[Sequence[Row]], bool] = lambda rows: True


class Table(NamedTuple):
    """A table of the page, the terminal, a CSV and a LaTeX file.

    Attributes:
      slug: A short name, for file names and anchors.
      title: The heading.
      note: An explanation of the table.
      columns: The columns to show; the CSV file has all keys of the rows.
      rows: One mapping per series or run, with ``label`` and the keys that the columns need.
      remarks: Warnings that accompany the numbers everywhere, one line each.
    """

    slug: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    remarks: Sequence[str] = ()


def comparison_table(runs: Sequence[RunRecord]) -> list[Row]:
    """The headline numbers of runs, one row per run.

    Args:
      runs: The runs.

    Returns:
      One mapping per run, with None where a figure does not apply. Keys:

      - ``run``, ``algorithm``, ``model``, ``data``, ``partition``, ``seed``, ``data_seed``: texts.
      - ``rounds``: completed rounds; ``rounds_asked``: the configured number; ``diverged``: 1 or 0.
      - ``personal_accuracy``, ``personal_p10``, ``personal_p50``, ``personal_p90``, ``personal_writeback``:
        accuracies in [0, 1] at the last evaluation, over the clients that have trained: the mean, percentiles
        of the clients, and the mean after write-back. Where the algorithm has a period, they are means over
        the last evaluations of one; ``personal_p50`` is of the last.
      - ``personal_accuracy_all``: the mean over all clients; ``global_accuracy``.
      - ``clients_seen``: the number of clients that have trained, of ``num_clients``.
      - ``mb_up``, ``mb_down``: mean MB (1e6 bytes) per client and round; ``mb_total``: MB of all clients and
        rounds, both directions; ``mb_setup``: MB that each device receives once.
      - ``ratio``: bytes per client and round over those of the FedAvg runs on the same data, with the same
        model if there are any.
      - ``client_gflops``: mean 1e9 FLOPs per client and round.
      - ``sim_seconds``, ``energy_joules``: totals of all rounds and clients.
      - ``rounds_per_second``.
    """
    rows = [_row(run) for run in runs]
    for row in rows:
        row["ratio"] = _ratio(row, rows)
    return rows


def is_best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row has the best value of a column.

    A diverged run is never the best one, and no run is where the runs are on different data.
    """
    sound = [other for other in rows if not other.get("diverged")]
    values = [other[column.needs] for other in sound if other[column.needs] is not None]
    if column.best is None or len(set(values)) < 2 or len({other.get("data") for other in rows}) > 1:
        return False
    return not row.get("diverged") and row[column.needs] == column.best(values)


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
        "personal_accuracy": settled(run, "personal_accuracy_mean_seen"),
        "personal_accuracy_all": settled(run, "personal_accuracy_mean"),
        "clients_seen": float(trained[0]) if trained else None,
        "num_clients": trained[1] if trained else None,
        "personal_p10": settled(run, "personal_accuracy_p10_seen"),
        "personal_p50": float(np.median(values)) if (values := client_accuracy(run)).size else None,
        "personal_p90": settled(run, "personal_accuracy_p90_seen"),
        "personal_writeback": settled(run, "personal_accuracy_writeback_seen"),
        "global_accuracy": settled(run, "global_accuracy"),
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
    """Bytes per client and round over the mean of the comparable FedAvg runs."""
    sound = [other for other in rows if other["algorithm"] == "fedavg" and not other["diverged"]]
    baselines = [other for other in sound if other["data"] == row["data"]]
    same_model = [other for other in baselines if other["model"] == row["model"]]
    costs = [cost for other in same_model or baselines if (cost := _traffic(other))]
    traffic = _traffic(row)
    return None if traffic is None or not costs else traffic * len(costs) / sum(costs)


def _traffic(row: Row) -> float | None:
    """MB per client and round, both directions."""
    return None if row["mb_up"] is None or row["mb_down"] is None else row["mb_up"] + row["mb_down"]


def _finite(value: float) -> float | None:
    return float(value) if value == value and abs(value) != float("inf") else None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _text(value: object) -> str | None:
    return None if value is None else as_text(value)
