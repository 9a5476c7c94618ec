"""Headline numbers over seeds, with one row per series."""

from collections.abc import Sequence
from typing import Any

from fedjax_masks.analysis.budgets import remarks_on
from fedjax_masks.analysis.columns import columns, some_untrained
from fedjax_masks.analysis.curves import ACCURACIES, BYTES, front_of, mean_curve
from fedjax_masks.analysis.setup import counts_setup
from fedjax_masks.analysis.style import Series, by_data
from fedjax_masks.analysis.table import Row, Table, comparison_table
from fedjax_masks.core.intervals import half_width

_WORDS = {key: text.partition(" ")[0] for key, text in ACCURACIES.items()}


def series_table(series: Sequence[Series]) -> Table:
    """Compares series by their means over seeds.

    Args:
      series: The series.

    Returns:
      A table. Its rows have the keys of :func:`~fedjax_masks.analysis.table.comparison_table`, with means
      over seeds. A key with ``_ci95`` at its end holds half the width of the 95 % confidence interval (None
      of a single seed). Further keys: ``label``; ``seeds``: the number of seeds; ``front``: the accuracies
      for which the series is on the Pareto front against bytes, where there are several series.
    """
    runs = [run for member in series for run in member.runs]
    single = iter(comparison_table(runs))
    fronts = {label: front for _, members in by_data(series) for label, front in _fronts(members).items()}
    rows = []
    for member in series:
        member_rows = [next(single) for _ in member.runs]
        row: Row = {"label": member.label, "seeds": len(member_rows)}
        for key in member_rows[0]:
            row |= _mean(key, [member_row[key] for member_row in member_rows])
        row["front"] = fronts.get(member.label)
        rows.append(row)
    note = _note(rows, counts_setup(series))
    return Table("summary", "Comparison", note, columns(rows), rows, remarks_on(series))


def runs_table(series: Sequence[Series]) -> Table:
    """The table of all runs, with one row per run."""
    runs = [run for member in series for run in member.runs]
    rows = [{"label": row["run"]} | row for row in comparison_table(runs)]
    return Table("runs", "Every run", "", columns(rows), rows)


def _mean(key: str, values: Sequence[Any]) -> Row:
    """One figure over seeds: a mean, the fewest rounds, the number of diverged runs, or a list of texts."""
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
    unique = list(dict.fromkeys(present))
    return {key: unique[0] if len(unique) == 1 else ", ".join(map(str, unique))}


def _fronts(series: Sequence[Series]) -> dict[str, str]:
    """The accuracies for which each series is on the Pareto front, by label; empty for a single series."""
    keys = [k for k in ACCURACIES if any(mean_curve(member, k, BYTES).cost.size for member in series)]
    fronts = {key: front_of(series, key).labels for key in keys if len(series) > 1}
    names = {m.label: [_WORDS[key] for key, labels in fronts.items() if m.label in labels] for m in series}
    return {label: "yes" if len(keys) == 1 else " + ".join(words) for label, words in names.items() if words}


def _note(rows: Sequence[Row], setup_counted: bool) -> str:
    """An explanation of the table."""
    parts = ["Accuracies at the end; p10, p50 and p90 are percentiles of the clients."]
    if some_untrained(rows):
        parts.append(
            "Personal accuracies and their percentiles are over the clients that have trained; comparisons, "
            "targets, tests and the Pareto front use these accuracies."
        )
    if any(row["personal_accuracy"] is not None and row["clients_seen"] is None for row in rows):
        parts.append("Personal accuracies of runs that do not count trained clients are over all clients.")
    if any(row["seeds"] > 1 for row in rows):
        parts.append("Means over seeds; ± is half the width of the 95 % confidence interval (Student's t).")
    if any(row["mb_total"] is not None for row in rows):
        parts.append("1 MB = 1e6 bytes; figures per client and round are means over all rounds.")
    if any(row["mb_setup"] is not None for row in rows):
        scope = (
            "MB down, MB in total and the ratio to FedAvg's bytes include them (--setup-bytes)"
            if setup_counted
            else "no other column includes them, unless --setup-bytes is given"
        )
        parts.append(f"Setup bytes are received once by every device, before the first round; {scope}.")
    if any(row["ratio"] is not None for row in rows):
        parts.append("FedAvg's bytes: per client and round, both directions, on the same data.")
    if any(row["front"] for row in rows):
        setup = "with" if setup_counted else "without"
        parts.append(
            "On the Pareto front: at the end, no other series was as accurate with as few bytes, "
            f"{setup} setup bytes."
        )
    if len({row["data"] for row in rows}) > 1:
        parts.append("The runs are on different data, so their figures are not directly comparable.")
    elif len(rows) > 1:
        parts.append("Bold: the best value of a column.")
    return " ".join(parts)
