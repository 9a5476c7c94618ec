"""FedSGD against its paper."""

import cases
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core import trees
from fedjax_masks.data.tasks import rows_of


@pytest.mark.parametrize("batch_size", [3, 20])
def test_a_round_is_a_step_of_gradient_descent_on_the_data_of_the_cohort(batch_size):
    task = cases.task()
    algorithm = fm.fedsgd(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.5), batch_size=batch_size)
    simulation = fm.make_simulation(algorithm, task, cohort=5, seed=7, chunk=3)
    state = simulation.init()
    expected = reference.layers(state.server.params)
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        union = np.concatenate([rows_of(task.train, client) for client, _ in clients])
        gradient = reference.gradient(expected, task.inputs[union].astype(np.float64), task.labels[union])
        expected = [w - 0.5 * g for w, g in zip(expected, gradient)]
    state, metrics = simulation.run(state, 0, 3)
    reference.assert_close(state.server.params, expected)
    np.testing.assert_array_equal(metrics.bytes_up, 4 * trees.size(state.server.params))


def test_a_second_epoch_is_refused():
    with pytest.raises(ValueError, match="epochs=2"):
        fm.fedsgd(fm.models.mlp(cases.task()), optax.sgd(0.1), epochs=2)
