"""How the clients of a round are laid out over time and devices."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Plan:
    """An execution plan. It decides speed and memory, never results.

    Attributes:
      block: Clients that run in step as one batch: 1 is a scan over clients, the whole
        cohort is a vmap, anything between is a scan of vmaps.
      devices: Devices that the clients of a round are spread over; of several processes all devices,
        or one each, where every process runs every client.
      reason: Why this plan was chosen, for people.
    """

    block: int
    devices: int = 1
    reason: str = "as asked"

    def __str__(self) -> str:
        kind = "scan" if self.block == 1 else f"blocks:{self.block}"
        return f"{kind},mesh:{self.devices}" if self.devices > 1 else kind


ACCEPTED = "'auto', 'scan', 'vmap', 'blocks:K', each with an optional ',mesh:D'"


def parse_plan(text: str, *, cohort: int) -> Plan:
    """Reads a plan as a user writes it.

    Args:
      text: ``"auto"``, ``"scan"``, ``"vmap"`` or ``"blocks:K"``, each optionally followed by
        ``",mesh:D"`` for D devices (default: all where that pays).
      cohort: Clients per round.

    Returns:
      The plan.

    Raises:
      ValueError: The text is none of these, or asks for more devices than there are.

    >>> print(parse_plan("blocks:4", cohort=10))
    blocks:4
    """
    kind, _, mesh = text.partition(",mesh:")
    available = jax.device_count()
    devices = _integer(mesh, text) if mesh else 0
    if devices > available:
        raise ValueError(f"plan={text!r}: there are {available} devices")
    if devices not in (0, 1, available) and jax.process_count() > 1:
        raise ValueError(f"plan={text!r}: accepted are mesh:1 and mesh:{available}, all of every process")
    if kind == "auto":
        return _auto(cohort, devices or available)
    blocks = {"scan": 1, "vmap": -(-cohort // max(devices, 1))}
    if kind in blocks:
        return Plan(blocks[kind], devices or 1)
    name, _, size = kind.partition(":")
    if name != "blocks":
        raise ValueError(f"plan={text!r}: accepted are {ACCEPTED}")
    return Plan(min(_integer(size, text), cohort), devices or 1)


def _integer(digits: str, text: str) -> int:
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError(f"plan={text!r}: accepted are {ACCEPTED}, with K and D at least 1")
    return int(digits)


def _auto(cohort: int, devices: int) -> Plan:
    if jax.process_count() == 1 or cohort == 1:
        devices = min(devices, cohort)
    if jax.default_backend() == "cpu":
        return Plan(1, devices, "one client's step stays in the cache of a core, a batch of clients does not")
    return Plan(-(-cohort // devices), devices, "an accelerator runs many small clients best as one batch")
