"""Equal simulations share their programs: compiling would take longer than all else in tests of runs."""

import contextlib

import jax
import pytest

from fedjax_masks.experiment import build, experiment, loop


@contextlib.contextmanager
def compile_once():
    """Within the block runs of equal configurations share an algorithm, a task and a simulation."""
    made, builds = {}, {}
    make, assemble = loop.make_simulation, build.build

    def make_remembered(algorithm, task, **options):
        key = (id(algorithm.train), id(task), *sorted(options.items()))
        if key not in made:
            simulation = make(algorithm, task, **options)
            start = jax.device_get(simulation.init())
            # The algorithm and the task are kept alive, or their ids could be given again.
            made[key] = algorithm, task, simulation._replace(init=lambda: jax.device_put(start))
        return made[key][-1]

    def build_remembered(config):
        if "npz:" in str(config):  # a file may change
            return assemble(config)
        if str(config) not in builds:
            builds[str(config)] = assemble(config)
        return builds[str(config)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_simulation", make_remembered)
        patch.setattr(experiment, "make_simulation", make_remembered)
        patch.setattr(build, "build", build_remembered)
        yield
