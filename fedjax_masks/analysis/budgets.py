"""Remarks on comparisons: unequal budgets and diverged runs."""

import json
from collections.abc import Sequence

from fedjax_masks.analysis.records import flatten, is_diverged
from fedjax_masks.analysis.style import Series

_BUDGET = {
    "training.epochs": "local epochs",
    "training.batch_size": "batch size",
    "data.clients": "clients",
    "data.examples_per_client": "examples per client",
    "cohort": "clients per round",
    "rounds": "rounds",
}
_NAMED = 3


def remarks_on(series: Sequence[Series]) -> list[str]:
    """Warnings that a reader needs before the numbers of a comparison, one line each."""
    return [line for line in (_unequal(series), _diverged(series)) if line]


def _unequal(series: Sequence[Series]) -> str:
    """The budgets in which series differ, with their series; empty where all budgets are equal.

    A key that is missing from a configuration, as in those of older versions, counts as equal. A null differs
    from a number.
    """
    parts = []
    for key, words in _BUDGET.items():
        owners: dict[str, list[str]] = {}
        for member in series:
            flat = flatten(member.runs[0].config)
            if key in flat:
                value = "not set" if flat[key] is None else json.dumps(flat[key])
                owners.setdefault(value, []).append(member.label)
        if len(owners) > 1:
            values = (f"{value} ({_few(labels)})" for value, labels in owners.items())
            parts.append(f"{words} {', '.join(values)}")
    return f"Unequal budgets: {'; '.join(parts)}." if parts else ""


def _diverged(series: Sequence[Series]) -> str:
    names = []
    for member in series:
        number, seeds = sum(map(is_diverged, member.runs)), len(member.runs)
        if number:
            names.append(member.label + (f" ({number} of {seeds} seeds)" if seeds > 1 else ""))
    if not names:
        return ""
    return (
        f"Diverged: {_few(names)}; updates or losses are no longer finite, or huge, so accuracies and costs "
        "have no meaning."
    )


def _few(names: Sequence[str]) -> str:
    """The first names, and the number of further ones."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
