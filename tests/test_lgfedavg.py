"""LG-FedAvg against its paper."""

import cases
import chex
import jax
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core.errors import UserError

SGD = optax.sgd(0.1, momentum=0.5)


@pytest.fixture(scope="module")
def model():
    return fm.models.mlp(cases.task(), hidden=(8,))


def run(algorithm, num=3):
    simulation = fm.make_simulation(algorithm, cases.task(), cohort=5, seeds=(7,), chunk=3)
    state, (metrics,) = simulation.run(simulation.init(), 0, num)
    return jax.device_get(state), metrics


def test_against_numpy(model):
    task = cases.task()
    algorithm = fm.lgfedavg(model, SGD, batch_size=4, shared=("dense2",))
    start = reference.layers(model.init(jax.random.split(jax.random.key(7))[0]))
    own, head = dict.fromkeys(range(task.num_clients), start[:2]), start[2:]
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        heads = []
        for client, key in clients:
            batches = reference.minibatches(task, client, key, batch_size=4, epochs=1)
            trained, _ = reference.sgd(own[client] + head, batches, lr=0.1, momentum=0.5)
            own[client] = trained[:2]
            heads.append(trained[2:])
        head = reference.weighted_mean(heads, [task.train.sizes[client] for client, _ in clients])
    state, metrics = run(algorithm)
    for client in range(task.num_clients):
        mine = jax.tree.map(lambda a, client=client: a[client], state.clients)
        reference.assert_close(mine | state.server.params, own[client] + head)
    np.testing.assert_array_equal(metrics.bytes_up, 4 * (8 + 1) * 3)
    np.testing.assert_array_equal(metrics.bytes_down, 4 * (8 + 1) * 3)


def test_a_client_predicts_with_its_representation_and_the_newest_head(model):
    algorithm = fm.lgfedavg(model, SGD, batch_size=4, shared=("dense2",))
    state, _ = run(algorithm)
    client = jax.tree.map(lambda a: a[4], state.clients)
    x = cases.task().inputs[:5]
    chex.assert_trees_all_equal(
        algorithm.predict["personal"](state.server, client, x), model.apply(client | state.server.params, x)
    )
    assert "global" not in algorithm.predict


def test_the_last_two_stages_are_shared_unless_others_are_named():
    model = fm.models.cnn(cases.task((8, 8, 1)))
    server = fm.lgfedavg(model, SGD).init(jax.random.key(0), cases.task((8, 8, 1))).server
    assert sorted(server.params) == ["dense1", "dense2"]


@pytest.mark.parametrize("shared", [("dense3",), ()])
def test_unknown_stages_are_refused(model, shared):
    with pytest.raises(UserError, match="shared="):
        fm.lgfedavg(model, SGD, shared=shared)
