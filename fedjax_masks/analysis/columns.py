"""Columns of a comparison, for the terminal, the page and LaTeX."""

from collections.abc import Callable, Sequence

from fedjax_masks.analysis.table import Column, Row
from fedjax_masks.analysis.wording import DIVERGED, NOT_APPLICABLE, percent, quantity


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns to show: some row has a value, and the column's condition holds for the rows."""
    return [
        column
        for column in _COLUMNS
        if any(row.get(column.needs) is not None for row in rows) and column.shown(rows)
    ]


def _accuracy(key: str) -> Callable[[Row], str]:
    """The text of an accuracy: the mean, with its confidence interval over seeds if there is one."""

    def text(row: Row) -> str:
        is_void = row["diverged"] and row[key] is not None
        return DIVERGED if is_void else percent(row[key], row.get(f"{key}_ci95"))

    return text


def _quantity(key: str) -> Callable[[Row], str]:
    return lambda row: quantity(row[key])


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: row[key] or NOT_APPLICABLE


def _clients(row: Row) -> str:
    """The text of the 10th, 50th and 90th percentile of the clients' accuracies."""
    values = [row[f"personal_p{rank}"] for rank in (10, 50, 90)]
    if all(value is None for value in values):
        return NOT_APPLICABLE
    if row["diverged"]:
        return DIVERGED
    return " / ".join("?" if value is None else f"{100 * value:.0f}" for value in values) + " %"


def _trained(row: Row) -> str:
    """The text of the number of clients that have trained, in the mean over seeds."""
    number = row["clients_seen"]
    if number is None:
        return NOT_APPLICABLE
    return f"{number:.{0 if number % 1 == 0 else 1}f} of {row['num_clients']}"


def some_untrained(rows: Sequence[Row]) -> bool:
    """Whether some row has clients that have not trained."""
    numbers = ((row["clients_seen"], row["num_clients"]) for row in rows)
    return any(trained is not None and trained != total for trained, total in numbers)


def _diverged(row: Row) -> str:
    if not row["diverged"]:
        return "no"
    seeds = row.get("seeds", 1)
    return "yes" if seeds == 1 else f"{row['diverged']} of {seeds} seeds"


def _rounds(row: Row) -> str:
    """The text of the completed rounds, of the configured number where the run is unfinished."""
    rounds, total = row["rounds"], row["rounds_asked"]
    return f"{rounds} of {total}" if isinstance(total, int) and rounds < total else str(rounds)


_COLUMNS = (
    Column("diverged", _diverged, "diverged", shown=lambda rows: any(row["diverged"] for row in rows)),
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
