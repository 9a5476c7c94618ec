"""Chunks of rounds: the compiled program, and the loop that moves data between host and devices."""

import time
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core import target
from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.profiles import Fleet
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.arrays import Examples
from fedjax_masks.simulation.blocks import compile_fast
from fedjax_masks.simulation.client import Setting
from fedjax_masks.simulation.cohorts import check_selection, client_ids, lay_out_rounds, select_cohorts
from fedjax_masks.simulation.keys import simulation_keys
from fedjax_masks.simulation.lanes import Lanes, lane_shapes, num_lanes
from fedjax_masks.simulation.mapping import put
from fedjax_masks.simulation.metering import read_metrics
from fedjax_masks.simulation.parts import Parts, initial_state, state_shardings
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.records import Padding, RoundMetrics, Stats
from fedjax_masks.simulation.round import RoundReport, run_chunk
from fedjax_masks.simulation.runs import Layout, Runs
from fedjax_masks.simulation.states import client_states, with_client_states
from fedjax_masks.simulation.tracing import Options


class ChunkRunner:
    """Compiles a chunk of rounds, and runs it.

    Attributes:
      parts: The parts of the simulation.
      runs: The layout of runs, under the plan that fits into memory.
      settings: The options and seeds of all runs, on the devices.
      memory_bytes: Estimated peak of device memory.
    """

    parts: Parts
    runs: Runs
    settings: tuple[Options, jax.Array]
    memory_bytes: int

    def __init__(self, parts: Parts, layout: Layout, plan: Plan) -> None:
        """Compiles the program under the plan, or under a smaller plan that fits into memory or is faster."""
        self.parts = parts
        self._num_compilations = 0
        self._padding = Padding()
        start = time.perf_counter()
        self._program, plan, self.memory_bytes = compile_fast(partial(self._compile, layout), plan, parts)
        self._compile_seconds = time.perf_counter() - start
        self.runs = layout(plan)
        parts.placement.sharding = self.runs.shared_sharding
        self._fleet = parts.placement.put(parts.meter.fleet)
        settings = self.runs.stack(list(zip(parts.options, parts.seeds)))
        self.settings = put(settings, self.runs.sharding)
        self._init_program = self._make_init_program()
        # Two entries: those of the current chunk, and those of the next chunk, which are laid out ahead.
        self._lay_out_cached = lru_cache(maxsize=2)(self._lay_out)

    def stats(self) -> Stats:
        """The statistics so far."""
        return Stats(self._compile_seconds, self._num_compilations, self._padding.efficiency)

    def init(self) -> State:
        """Makes the state of all runs before round 0."""
        return self._init_program(self.settings)

    def run(self, state: State, first_round: int, num_rounds: int) -> tuple[State, list[RoundMetrics]]:
        """Runs some rounds, in as many calls of the program as the storage of states needs."""
        parts = self.parts
        if not 1 <= num_rounds <= parts.chunk:
            raise UserError(f"num_rounds={num_rounds}: must be from 1 to {parts.chunk}, the chunk")
        rounds, step = range(first_round, first_round + num_rounds), parts.states.max_rounds
        reports = []
        for start in range(0, num_rounds, step):
            state, report = self._run_program(state, rounds[start : start + step])
            reports.append(report)
        runs = [jax.tree.map(lambda *each: np.concatenate(each), *run) for run in zip(*reports)]
        metrics = [read_metrics(parts.meter, *run) for run in runs]
        for run_metrics in metrics:
            self._padding = self._padding.plus(run_metrics)
        return state, metrics

    def _run_program(
        self, state: State, rounds: range
    ) -> tuple[State, list[tuple[Lanes[np.ndarray], RoundReport]]]:
        """Runs the program once; returns the state, and the lanes and the report of each run."""
        parts, runs, number = self.parts, self.runs, len(rounds)
        data, states, old_states = parts.data, parts.states, client_states(state)
        selection, cohorts = self._lay_out_cached(rounds)
        check_selection(parts.algorithm, rounds, selection, self._select)
        ids = client_ids(cohorts, parts.task)
        # Padded to one shape: one program serves any number of rounds.
        lanes = [
            jax.tree.map(
                lambda a: np.pad(a, ((0, states.max_rounds - number), (0, 0))),
                data.locate(states.locate(cohort, ids), ids),
            )
            for cohort in cohorts
        ]
        per_run = (*self.settings, put(runs.stack(lanes), runs.sharding))
        bounds = parts.placement.put((np.int32(rounds.start), np.int32(number)))
        state = with_client_states(state, states.load(old_states, ids))
        state, report = self._program(state, per_run, (data.load((), ids), *bounds, self._fleet))
        # The program runs in the background: the host fetches the data of the next chunk meanwhile.
        next_ids = client_ids(self._lay_out_cached(range(rounds.stop, rounds.stop + number))[1], parts.task)
        data.prefetch((), next_ids)
        states.prefetch(old_states, np.setdiff1d(next_ids, ids))
        reports = runs.split(jax.device_get(report))
        state = with_client_states(state, states.save(old_states, ids, client_states(state)))
        return state, [
            (cohort, jax.tree.map(lambda a: a[:number], report)) for cohort, report in zip(cohorts, reports)
        ]

    def _select(self, rounds: range) -> np.ndarray:
        """Selects the cohorts of all runs, ``int32[rounds, runs, cohort]``."""
        parts = self.parts
        cohorts = [
            select_cohorts(rounds, int(seed), parts.cohort, parts.task.num_clients, parts.algorithm)
            for seed in parts.seeds
        ]
        return np.stack(cohorts, axis=1)

    def _lay_out(self, rounds: range) -> tuple[np.ndarray, list[Lanes[np.ndarray]]]:
        """The cohorts of all runs, and the lanes of each run."""
        selection = self._select(rounds)
        return selection, [
            lay_out_rounds(cohorts, self.parts.task, self.parts.algorithm, self.runs.plan)
            for cohorts in np.moveaxis(selection, 1, 0)
        ]

    def _make_init_program(self) -> Callable[[tuple[Options, jax.Array]], State]:
        """Makes the program of initial states: ``(settings) -> state`` of all runs."""
        parts, runs = self.parts, self.runs

        def one_run(_: tuple[()], settings: tuple[Options, jax.Array]) -> State:
            options, seed = settings
            state = initial_state(parts.make, options, seed, parts.task)
            return with_client_states(state, parts.states.init(client_states(state)))

        # One program, so that states which are sharded or on the host are never on one device as a whole.
        return jax.jit(
            lambda settings: runs.map(one_run, (), settings),
            out_shardings=state_shardings(parts.states, runs.sharding),
        )

    def _compile(self, layout: Layout, plan: Plan) -> jax.stages.Compiled:
        self._num_compilations += 1
        return lower_chunk(self.parts, layout(plan)).compile()


def lower_chunk(parts: Parts, runs: Runs, *, num_rounds: int | None = None) -> jax.stages.Lowered:
    """Lowers the program of a chunk of rounds: ``(state, per_run, shared) -> (state, report)``.

    Args:
      parts: The parts of the simulation.
      runs: The layout of runs.
      num_rounds: The number of rounds, as a constant; None for a number that each call chooses.
    """
    states = parts.states

    def one_run(
        shared: tuple[Examples[jax.Array], jax.Array, jax.Array, Fleet | tuple[()]],
        run: tuple[State, Options, jax.Array, Lanes[jax.Array]],
    ) -> tuple[State, RoundReport]:
        data, first, number, fleet = shared
        state, options, seed, cohorts = run
        setting = Setting(
            parts.make(options),
            runs.plan,
            arrays.capacity(parts.task),
            poison=parts.poison,
            clock=parts.meter.clock,
            packing=states.packing,
            server_trains=parts.shapes.server_trains,
        )
        _, key = simulation_keys(seed)
        number = number if num_rounds is None else jnp.int32(num_rounds)
        with target.exact_products():
            return run_chunk(setting, state, data, key, first, number, cohorts, fleet)

    shardings = state_shardings(states, runs.sharding)
    program = jax.jit(
        lambda state, per_run, shared: runs.map(one_run, shared, (state, *per_run)),
        donate_argnums=0,  # large states need no second copy
        in_shardings=(shardings, runs.sharding, runs.shared_sharding),
        out_shardings=(shardings, runs.sharding),
    )
    length = num_lanes(parts.cohort, runs.plan, parts.algorithm.schedule.num_tiers)
    cohorts = lane_shapes(states.max_rounds, length)
    state = with_client_states(parts.shapes.state, states.shapes)
    state, *per_run = runs.shapes((state, parts.options[0], parts.seeds[0], cohorts))
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shared = (parts.data.shapes, scalar, scalar, parts.meter.fleet)
    return target.lower(program, state, tuple(per_run), shared)
