"""The headline numbers of several runs, side by side."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_masks.analysis.records import (
    MEGABYTE,
    RunRecord,
    algorithm_name,
    bytes_per_client_round,
    column,
    last,
    number,
    rounds_done,
    setting,
    total_bytes,
)

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

NOT_APPLICABLE = "n/a"
_TITLE_WIDTH, _RUN_WIDTH = 28, 17


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
      ``personal_accuracy``, ``personal_p10``, ``personal_p90``, ``personal_writeback``,
      ``global_accuracy``; ``mb_up`` and ``mb_down``: mean MB (1e6 bytes) per client and round;
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
    """The columns to show: those in which some run has a value."""
    return [column for column in _COLUMNS if any(row[column.needs] is not None for row in rows)]


def is_best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether a run leads in a column; never where the runs are on different data."""
    present = [other[column.needs] for other in rows if other[column.needs] is not None]
    if column.best is None or len(set(present)) < 2 or len({other["data"] for other in rows}) > 1:
        return False
    return row[column.needs] == column.best(present)


def print_table(runs: Sequence[RunRecord], console: "Console | None" = None) -> None:
    """Prints the comparison to a terminal: figures down, runs across, as many as fit.

    Args:
      runs: The runs.
      console: A rich console; standard output by default.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = comparison_table(runs)
    out = Console() if console is None else console
    abreast = max(1, (out.width - _TITLE_WIDTH) // _RUN_WIDTH)
    for start in range(0, len(rows), abreast):
        some = rows[start : start + abreast]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column()
        for row in some:
            table.add_column(Text(row["algorithm"]), justify="right")
        for line in columns(rows):
            cells = [Text(line.text(row), "bold" if is_best(line, row, rows) else "") for row in some]
            table.add_row(Text(line.title, "dim"), *cells)
        out.print(table)


def percent(value: float | None) -> str:
    """An accuracy in [0, 1] as a percentage.

    >>> percent(0.9312), percent(None)
    ('93.1 %', 'n/a')
    """
    return NOT_APPLICABLE if value is None else f"{100 * value:.1f} %"


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
        "personal_p90": last(run, "personal_accuracy_p90"),
        "personal_writeback": last(run, "personal_accuracy_writeback"),
        "global_accuracy": last(run, "global_accuracy"),
        "mb_up": _scaled(bytes_per_client_round(run, "up"), MEGABYTE),
        "mb_down": _scaled(bytes_per_client_round(run, "down"), MEGABYTE),
        "mb_total": _scaled(_finite(totals[-1]) if totals.size else None, MEGABYTE),
        "mb_setup": _scaled(_finite(number(run.summary.get("setup_bytes"))) or None, MEGABYTE),
        "client_gflops": _scaled(_mean(run, "client_flops"), 1e9),
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


def _mean(run: RunRecord, key: str) -> float | None:
    values = column(run, key)
    values = values[values == values]
    return float(values.mean()) if values.size else None


def _finite(value: float) -> float | None:
    return float(value) if value == value and abs(value) != float("inf") else None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _personal(row: Row) -> str:
    """The mean, and the range from the 10th to the 90th percentile of the clients."""
    mean, low, high = (row[key] for key in ("personal_accuracy", "personal_p10", "personal_p90"))
    spread = "" if low is None or high is None else f" [{100 * low:.0f}-{100 * high:.0f}]"
    return percent(mean) + spread


def _rounds(row: Row) -> str:
    """Rounds completed, and those asked for where the run has not got there."""
    done, asked = row["rounds"], row["rounds_asked"]
    return f"{done} of {asked}" if isinstance(asked, int) and done < asked else str(done)


_COLUMNS = (
    Column("personal accuracy [p10-p90]", _personal, "personal_accuracy", max),
    Column("personal after write-back", lambda row: percent(row["personal_writeback"]), "personal_writeback"),
    Column("global accuracy", lambda row: percent(row["global_accuracy"]), "global_accuracy", max),
    Column("MB up / client·round", lambda row: quantity(row["mb_up"]), "mb_up", min),
    Column("MB down / client·round", lambda row: quantity(row["mb_down"]), "mb_down", min),
    Column("MB in total", lambda row: quantity(row["mb_total"]), "mb_total"),
    Column("bytes ÷ FedAvg's", lambda row: quantity(row["ratio"]), "ratio", min),
    Column("MB setup / device", lambda row: quantity(row["mb_setup"]), "mb_setup"),
    Column("GFLOP / client·round", lambda row: quantity(row["client_gflops"]), "client_gflops", min),
    Column("simulated seconds", lambda row: quantity(row["sim_seconds"]), "sim_seconds", min),
    Column("joules of all clients", lambda row: quantity(row["energy_joules"]), "energy_joules", min),
    Column("rounds", _rounds, "rounds"),
    Column("rounds/s", lambda row: quantity(row["rounds_per_second"]), "rounds_per_second"),
    Column("model", lambda row: row["model"] or NOT_APPLICABLE, "model"),
    Column("data", lambda row: row["data"] or NOT_APPLICABLE, "data"),
    Column("seed", lambda row: row["seed"] or NOT_APPLICABLE, "seed"),
)
