"""Equal simulations share their programs: compiling would take longer than all else in tests of runs."""

import contextlib
from dataclasses import replace

import jax
import pytest

from fedjax_masks.experiment import build, experiment, loop
from fedjax_masks.simulation import chunks


@contextlib.contextmanager
def without_rounds():
    """Simulations made within the block have no program of rounds: they begin and evaluate only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "compile_fast", lambda compile_plan, plan, parts: (None, plan, 0))
        yield


@contextlib.contextmanager
def compile_once():
    """Within the block runs of equal configurations share an algorithm, a task and a simulation."""
    made, builds = {}, {}
    make, assemble = loop.make_simulation, build.build

    def make_remembered(algorithm, task, *, storage, **options):
        def key(place):
            # Path and checkpoints are of a file on the host.
            where = replace(storage, clients=place, path=None, checkpoints=1)
            return id(algorithm.train), id(task), where, *sorted(options.items())

        if key(storage.clients) not in made:
            simulation = make(algorithm, task, storage=storage, **options)
            if simulation.store is not None:  # it has a file of its own
                return simulation
            first = simulation.init()
            start, places = jax.device_get(first), jax.tree.map(lambda leaf: leaf.sharding, first)
            # The algorithm and the task are kept alive, or their ids could be given again.
            entry = algorithm, task, simulation._replace(init=lambda: jax.device_put(start, places))
            # A run that is resumed asks for the place that was chosen.
            made[key(storage.clients)] = made[key(simulation.state_place)] = entry
        return made[key(storage.clients)][-1]

    def build_remembered(config):
        if "npz:" in str(config):  # a file may change
            return assemble(config)
        key = str(replace(config, checkpoint_share=1.0, keep_checkpoints=1, log=None))
        if key not in builds:
            builds[key] = assemble(config)
        return builds[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_simulation", make_remembered)
        patch.setattr(experiment, "make_simulation", make_remembered)
        patch.setattr(build, "build", build_remembered)
        yield
