"""Claims: published figures beside ours, and the verdict on each."""

from typing import Literal, NamedTuple

Label = Literal["exact", "measured", "trend"]
Basis = Literal["published", "authors' code", "derived here"]
Verdict = Literal["met", "missed", "consistent", "inconsistent", "not run", "not reproducible here"]

LIVE = "computed just now"
COMMAND = "fedjax-masks claims"


class Statement(NamedTuple):
    """A figure or an order that ours is compared with.

    Attributes:
      system: The algorithm.
      claim: The quantity, and its place in the paper.
      paper: The figure, with its unit.
      label: The class of our figure. ``exact``: counted; ``measured``: a ratio of times on one machine;
        ``trend``: an order of accuracies on the available data, with 95 % confidence intervals over seeds.
      basis: The origin of the figure. ``published``: the paper prints it; ``authors' code``: it is in the
        authors' code or logs, or follows from running the code; ``derived here``: we derived it from a
        formula, from shapes or from a protocol, so both sides are ours and the row is a consistency check.
    """

    system: str
    claim: str
    paper: str
    label: Label
    basis: Basis = "derived here"


class Claim(NamedTuple):
    """A statement beside our figure under one set of conditions.

    A statement has one row for each set of conditions; rows that agree in system and claim are counted as
    one claim, see :func:`fedjax_masks.claims.outcomes.outcomes`.

    Attributes:
      system: The algorithm.
      claim: The quantity, and its place in the paper.
      basis: The origin of the figure beside ours; see :class:`Statement`.
      paper: The figure beside ours, with its unit.
      conditions: The conditions of our figure: data set, network, clients, rounds, seeds, setting.
      ours: Our figure, or None without one.
      label: The class of our figure; see :class:`Statement`.
      verdict: ``met`` or ``missed``; for a figure derived here ``consistent`` or ``inconsistent``.
        ``not run``: the run is possible, and nobody did it; ``not reproducible here``: it needs a device,
        data or facts that cannot be had.
      command: The command that produces our figure.
      source: The origin of our figure: this call, or a result file with its commit and machine.
      note: The reason for a verdict other than ``met`` and ``consistent``.
    """

    system: str
    claim: str
    basis: Basis
    paper: str
    conditions: str
    ours: str | None
    label: Label
    verdict: Verdict
    command: str
    source: str
    note: str = ""

    def as_json(self) -> dict[str, str | None]:
        """The fields by name; the key of the label is ``class``."""
        return {"class" if key == "label" else key: value for key, value in self._asdict().items()}


def judged_claim(
    statement: Statement,
    conditions: str,
    ours: str,
    is_met: bool,
    *,
    note: str = "",
    command: str = COMMAND,
    source: str = LIVE,
) -> Claim:
    """A row with a figure of ours.

    Args:
      statement: The statement.
      conditions: The conditions of our figure.
      ours: Our figure, with its unit.
      is_met: Whether our figure meets the statement.
      note: The difference and its reason, used where our figure does not meet the statement.
      command: The command that produces our figure.
      source: The origin of our figure.
    """
    failure, success = ("inconsistent", "consistent") if _is_ours(statement) else ("missed", "met")
    verdict: Verdict = success if is_met else failure
    return _row(statement, conditions, ours, verdict, command, source, "" if is_met else note)


def claim_not_run(statement: Statement, conditions: str, command: str, reason: str) -> Claim:
    """A row that a run could fill.

    Args:
      statement: The statement.
      conditions: The conditions of the run.
      command: The command of the run.
      reason: The size of the run, or another reason why nobody did it.
    """
    return _row(statement, conditions, None, "not run", command, "no run of ours", reason)


def claim_out_of_reach(statement: Statement, conditions: str, command: str, reason: str) -> Claim:
    """A row that no run can fill here.

    Args:
      statement: The statement.
      conditions: The conditions of the statement.
      command: The command that produces the nearest figure.
      reason: The requirements that cannot be had, and the nearest figure of ours.
    """
    return _row(statement, conditions, None, "not reproducible here", command, "no run of ours", reason)


def explained(difference: str, reason: str) -> str:
    """A difference, followed by its reason if there is one."""
    return difference.strip() + (f": {reason}" if reason else "")


def _is_ours(statement: Statement) -> bool:
    return statement.basis == "derived here"


def _row(
    statement: Statement,
    conditions: str,
    ours: str | None,
    verdict: Verdict,
    command: str,
    source: str,
    note: str,
) -> Claim:
    system, claim, paper, label, basis = statement
    return Claim(system, claim, basis, paper, conditions, ours, label, verdict, command, source, note)
