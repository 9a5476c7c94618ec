"""The simulation engine: plans, rounds, evaluation."""

from fedjax_masks.simulation.engine import Simulation, make_simulation
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats

__all__ = ["Evaluation", "Plan", "RoundMetrics", "Simulation", "Stats", "make_simulation", "parse_plan"]
