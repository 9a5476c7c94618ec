"""Setup bytes: bytes that devices receive before the first round."""

from collections.abc import Sequence

from fedjax_masks.analysis.records import RunRecord, last, number, setting
from fedjax_masks.analysis.style import Series
from fedjax_masks.analysis.wording import si


def setup_total(run: RunRecord) -> float:
    """Setup bytes of all devices together; NaN until a run has finished.

    Every client is a device, whether it takes part in a round or not.
    """
    clients = last(run, "num_clients")
    if clients is None:  # records of older versions lack the number
        clients = number(setting(run, "data", "clients") or len(run.summary.get("client_accuracy") or ()))
    return number(run.summary.get("setup_bytes")) * clients


def with_setup(run: RunRecord) -> RunRecord:
    """The run with its setup bytes included in the bytes of all downloads."""
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
    """A phrase on the setup bytes of the series; empty where no series has some."""
    per_device = {member.label: number(member.runs[0].summary.get("setup_bytes")) for member in series}
    amounts = [f"{label} {si(value, 'B')}" for label, value in per_device.items() if value > 0]
    if not amounts:
        return ""
    return f"setup bytes, which every device receives once, before the first round ({', '.join(amounts)})"
