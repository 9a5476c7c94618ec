"""The simulation engine: plans, rounds, evaluation."""

from fedjax_masks.simulation.batch import Batch, alone, can_trace, make_batch
from fedjax_masks.simulation.engine import Simulation, check_cohort, make_simulation
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats
from fedjax_masks.simulation.storage import AUTO, Storage
from fedjax_masks.simulation.store import Store

__all__ = [
    "AUTO",
    "Batch",
    "Evaluation",
    "Plan",
    "RoundMetrics",
    "Simulation",
    "Stats",
    "Storage",
    "Store",
    "alone",
    "can_trace",
    "check_cohort",
    "make_batch",
    "make_simulation",
    "parse_plan",
]
