"""Bytes that devices get before the first round, beside those of the rounds."""

from collections.abc import Sequence

from fedjax_masks.analysis.records import RunRecord, last, number, setting
from fedjax_masks.analysis.style import Series
from fedjax_masks.analysis.wording import si


def setup_total(run: RunRecord) -> float:
    """Bytes that all devices together get before the first round; NaN while a run has not finished.

    Every client is a device, whether it takes part later or not.
    """
    clients = last(run, "num_clients")
    if clients is None:  # records of older versions do not tell
        clients = setting(run, "data", "clients") or len(run.summary.get("client_accuracy") or ())
    return number(run.summary.get("setup_bytes")) * clients


def with_setup(run: RunRecord) -> RunRecord:
    """The run with what devices got before the first round among the bytes that came down."""
    setup = setup_total(run)
    records = [
        record | {"bytes_down_total": number(record.get("bytes_down_total")) + setup}
        for record in run.records
    ]
    return run._replace(records=records, summary=run.summary | {"setup_counted": True})


def counts_setup(series: Sequence[Series]) -> bool:
    """Whether some runs come from :func:`with_setup`."""
    return any("setup_counted" in run.summary for member in series for run in member.runs)


def setup_received(series: Sequence[Series]) -> str:
    """Words for what devices of some series got before the first round; empty where none got anything."""
    each = {member.label: number(member.runs[0].summary.get("setup_bytes")) for member in series}
    got = [f"{label} {si(value, 'B')}" for label, value in each.items() if value > 0]
    if not got:
        return ""
    return f"what every device gets before the first round ({', '.join(got)}, for each client once)"
