"""FedSGD against its paper."""

import cases
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core import trees
from fedjax_masks.core.errors import UserError
from fedjax_masks.data.tasks import rows_of


def centralised(params, *, rate, clip=np.inf):
    """Gradient descent on the data of three cohorts; ``clip`` limits the gradient's norm."""
    task = cases.task()
    for index, clients in enumerate(reference.rounds(task, seed=7, num=3, cohort=5)):
        union = np.concatenate([rows_of(task.train, client) for client, _ in clients])
        gradient = reference.gradient(params, task.inputs[union].astype(np.float64), task.labels[union])
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        params = [w - rate(index) * min(1, clip / norm) * g for w, g in zip(params, gradient)]
    return params


@pytest.mark.parametrize("batch_size", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_round_is_a_step_of_gradient_descent_on_the_data_of_the_cohort(batch_size):
    task = cases.task()
    algorithm = fm.fedsgd(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.5), batch_size=batch_size)
    simulation = fm.make_simulation(algorithm, task, cohort=5, seeds=(7,), chunk=3)
    state = simulation.init()
    expected = centralised(reference.layers(state.server.params), rate=lambda index: 0.5)
    state, (metrics,) = simulation.run(state, 0, 3)
    reference.assert_close(state.server.params, expected)
    np.testing.assert_array_equal(metrics.bytes_up, 4 * trees.size(state.server.params))


def test_schedule_and_clipping_act_on_the_mean_gradient():
    options = {"schedule": lambda index: 0.5**index, "clip_norm": 0.1, "batch_size": 4}
    algorithm = fm.fedsgd(fm.models.mlp(cases.task(), hidden=(8,)), optax.sgd(0.5), **options)
    simulation = fm.make_simulation(algorithm, cases.task(), cohort=5, seeds=(7,), chunk=3)
    state = simulation.init()
    start = reference.layers(state.server.params)
    params = simulation.run(state, 0, 3)[0].server.params
    reference.assert_close(params, centralised(start, rate=lambda index: 0.5 * 0.5**index, clip=0.1))


def test_a_second_epoch_is_refused():
    with pytest.raises(UserError, match=r"^epochs=2: must be 1"):
        fm.fedsgd(fm.models.mlp(cases.task()), optax.sgd(0.1), epochs=2)
