"""Execution plans: the division of a round's clients over time and devices."""

from dataclasses import dataclass

import jax

from fedjax_masks.core import target
from fedjax_masks.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """An execution plan, which decides speed and memory, and never results.

    Attributes:
      block: Number of clients that run in step: 1 is a scan over clients, the whole cohort is a vmap, and
        other numbers are a scan of vmaps.
      devices: Number of devices for the clients of a round. With several processes, it is the number of all
        devices, or 1, where every process runs every client.
      reason: The reason for the plan, for people.
      is_free: Whether a smaller block may replace this one if it is faster.
    """

    block: int
    devices: int = 1
    reason: str = "as requested"
    is_free: bool = False

    def __str__(self) -> str:
        kind = "scan" if self.block == 1 else f"blocks:{self.block}"
        return f"{kind},mesh:{self.devices}" if self.devices > 1 else kind


_CONSTRAINT = "must be 'auto', 'scan', 'vmap' or 'blocks:K', each with an optional ',mesh:D'"


def parse_plan(text: str, *, cohort: int) -> Plan:
    """Makes a plan from text.

    Args:
      text: ``"auto"``, ``"scan"``, ``"vmap"`` or ``"blocks:K"``, each optionally followed by ``",mesh:D"``
        for D devices (default: all devices for ``"auto"``, else one).
      cohort: Clients per round.

    Returns:
      The plan.

    Raises:
      UserError: The text has another form, or names more devices than there are.

    >>> print(parse_plan("blocks:4", cohort=10))
    blocks:4
    """
    kind, _, mesh = text.partition(",mesh:")
    available = len(target.devices())
    devices = _integer(mesh, text) if mesh else 0
    if devices > available:
        raise UserError(f"plan={text!r}: must have mesh:{available} at most, the number of devices")
    if devices not in (0, 1, available) and jax.process_count() > 1:
        raise UserError(f"plan={text!r}: must have mesh:1 or mesh:{available}, all devices of all processes")
    if kind == "auto":
        return _auto(cohort, devices or available)
    blocks = {"scan": 1, "vmap": -(-cohort // max(devices, 1))}
    if kind in blocks:
        return Plan(blocks[kind], devices or 1)
    name, _, size = kind.partition(":")
    if name != "blocks":
        raise UserError(f"plan={text!r}: {_CONSTRAINT}")
    return Plan(min(_integer(size, text), cohort), devices or 1)


def _integer(digits: str, text: str) -> int:
    if not digits.isdigit() or int(digits) < 1:
        raise UserError(f"plan={text!r}: {_CONSTRAINT}, where K and D are at least 1")
    return int(digits)


def _auto(cohort: int, devices: int) -> Plan:
    if jax.process_count() == 1 or cohort == 1:
        devices = min(devices, cohort)
    if target.is_cpu():
        return Plan(1, devices, "one client's step stays in the cache of a core, a batch of clients does not")
    reason = "an accelerator runs many small clients best as one batch"
    return Plan(-(-cohort // devices), devices, reason, is_free=True)
