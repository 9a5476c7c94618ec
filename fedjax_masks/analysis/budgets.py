"""Differences between compared runs that are no difference of method: unequal budgets, divergence."""

import json
from collections.abc import Sequence
from typing import Any

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
    """What a reader must know of a comparison before its numbers, one line each."""
    return [line for line in (_unequal(series), _diverged(series)) if line]


def _unequal(series: Sequence[Series]) -> str:
    """The budgets in which series differ, and whose they are; empty where all have the same.

    A key that a configuration does not have, as those of older versions, is no difference; one that is
    null differs from one with a number.
    """
    parts = []
    for key, words in _BUDGET.items():
        owners: dict[str, list[str]] = {}
        for member in series:
            flat = flatten(member.runs[0].config)
            if key in flat:
                told = "not set" if flat[key] is None else json.dumps(flat[key])
                owners.setdefault(told, []).append(member.label)
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
        f"Diverged: {_few(names)}; updates or losses are not finite any more, or huge, so accuracies and "
        "costs mean nothing."
    )


def _few(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
