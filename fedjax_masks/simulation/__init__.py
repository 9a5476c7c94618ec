"""The simulation engine: plans, rounds, evaluation. Names are imported at first use."""

from typing import TYPE_CHECKING

from fedjax_masks.core.lazy import exports

if TYPE_CHECKING:
    from fedjax_masks.simulation.engine import Simulation, check_cohort, make_simulation
    from fedjax_masks.simulation.options import can_trace
    from fedjax_masks.simulation.plan import Plan, parse_plan
    from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats
    from fedjax_masks.simulation.storage import AUTO, Storage
    from fedjax_masks.simulation.store import Store

__all__ = [
    "AUTO",
    "Evaluation",
    "Plan",
    "RoundMetrics",
    "Simulation",
    "Stats",
    "Storage",
    "Store",
    "can_trace",
    "check_cohort",
    "make_simulation",
    "parse_plan",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "engine": ("Simulation", "check_cohort", "make_simulation"),
        "options": ("can_trace",),
        "plan": ("Plan", "parse_plan"),
        "records": ("Evaluation", "RoundMetrics", "Stats"),
        "storage": ("AUTO", "Storage"),
        "store": ("Store",),
    },
)
