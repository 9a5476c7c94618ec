"""The headline numbers over seeds: one row per series."""

from collections.abc import Sequence
from typing import Any

from fedjax_masks.analysis.budgets import remarks_on
from fedjax_masks.analysis.curves import ACCURACIES, BYTES, front_of, mean_curve
from fedjax_masks.analysis.setup import counts_setup
from fedjax_masks.analysis.style import Series, by_data
from fedjax_masks.analysis.table import Row, Table, columns, comparison_table, some_untrained
from fedjax_masks.core.intervals import half_width

_WORDS = {key: text.partition(" ")[0] for key, text in ACCURACIES.items()}


def series_table(series: Sequence[Series]) -> Table:
    """Compares series by their means over seeds.

    Args:
      series: The series.

    Returns:
      A table whose rows have the keys of :func:`~fedjax_masks.analysis.table.comparison_table`,
      means over seeds, and with ``_ci95`` appended half the width of the 95 % confidence interval
      (None of a single seed); ``label``; ``seeds``, how many; ``front``, of which accuracies the
      series is on the Pareto front against bytes, where there is more than one series.
    """
    runs = [run for member in series for run in member.runs]
    single = iter(comparison_table(runs))
    fronts = {label: on for _, members in by_data(series) for label, on in _fronts(members).items()}
    rows = []
    for member in series:
        own = [next(single) for _ in member.runs]
        row: Row = {"label": member.label, "seeds": len(own)}
        for key in own[0]:
            row |= _summed_up(key, [one[key] for one in own])
        row["front"] = fronts.get(member.label)
        rows.append(row)
    note = _note(rows, counts_setup(series))
    return Table("summary", "Comparison", note, columns(rows), rows, remarks_on(series))


def runs_table(series: Sequence[Series]) -> Table:
    """Every run for itself."""
    runs = [run for member in series for run in member.runs]
    rows = [{"label": row["run"]} | row for row in comparison_table(runs)]
    return Table("runs", "Every run", "", columns(rows), rows)


def _summed_up(key: str, values: Sequence[Any]) -> Row:
    """One figure of several seeds."""
    present = [value for value in values if value is not None]
    if not present:
        return {key: None}
    if key == "rounds":
        return {key: min(present)}
    if key == "diverged":
        return {key: sum(present)}
    if all(isinstance(value, float) for value in present):
        width = half_width(present)
        return {key: sum(present) / len(present), f"{key}_ci95": width if width == width else None}
    different = list(dict.fromkeys(present))
    return {key: different[0] if len(different) == 1 else ", ".join(map(str, different))}


def _fronts(series: Sequence[Series]) -> dict[str, str]:
    """Of which accuracies a series is on the front of those on the same data; nothing of one alone."""
    keys = [k for k in ACCURACIES if any(mean_curve(member, k, BYTES).cost.size for member in series)]
    on = {key: front_of(series, key).labels for key in keys if len(series) > 1}
    mine = {m.label: [_WORDS[key] for key, labels in on.items() if m.label in labels] for m in series}
    return {label: "yes" if len(keys) == 1 else " + ".join(words) for label, words in mine.items() if words}


def _note(rows: Sequence[Row], setup_counted: bool) -> str:
    """How to read the table."""
    parts = ["Accuracies at the last evaluation; p10, p50 and p90 are percentiles of the clients."]
    if some_untrained(rows):
        parts.append(
            "Personal accuracies and their percentiles are over the clients that have trained; "
            "comparisons, targets, tests and the Pareto front use these."
        )
    if any(row["personal_accuracy"] is not None and row["clients_seen"] is None for row in rows):
        parts.append("Where it is not told how many clients trained, they are over all clients.")
    if any(row["seeds"] > 1 for row in rows):
        parts.append("Means over seeds; ± is half the width of the 95 % confidence interval (Student's t).")
    if any(row["mb_total"] is not None for row in rows):
        parts.append("1 MB = 1e6 bytes; per client and round is the mean over all rounds.")
    if any(row["mb_setup"] is not None for row in rows):
        where = (
            "once for every client, it is in MB down, in total and against FedAvg's (--setup-bytes)"
            if setup_counted
            else "it is in no other column; --setup-bytes counts it"
        )
        parts.append(f"Setup is what every device gets once, before the first round; {where}.")
    if any(row["ratio"] is not None for row in rows):
        parts.append("FedAvg's bytes: per client and round, both directions, on the same data.")
    if any(row["front"] for row in rows):
        setup = "with" if setup_counted else "without"
        parts.append(
            f"On the Pareto front: in the end, no other was as accurate for as few bytes, {setup} setup."
        )
    if len({row["data"] for row in rows}) > 1:
        parts.append("The runs are on different data: compare with care.")
    elif len(rows) > 1:
        parts.append("Bold: the best of its column.")
    return " ".join(parts)
