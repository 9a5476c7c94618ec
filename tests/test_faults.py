"""Clients without examples, cohorts of which nobody arrives, and updates that no sum can hold."""

from dataclasses import replace

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core.algorithm import ClientIndex
from fedjax_masks.simulation import make_simulation

# Those that differ most in what they send; the others take as long and say the same.
FAST = ("fedavg", "fedmask", "scaffold")
CASES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in cases.CASES]
LONE = 2  # the client with a single example


def with_sizes(task, sizes):
    return replace(task, train=ClientIndex(task.train.rows, task.train.offsets, np.asarray(sizes, np.int32)))


def with_nan(task, clients):
    inputs = np.array(task.inputs, np.float32)
    for client in clients:
        start = task.train.offsets[client]
        inputs[task.train.rows[start : start + task.train.sizes[client]]] = np.nan
    return replace(task, inputs=inputs)


def run(algorithm, task, rounds):
    """All clients take part; with one chunk, the programs of a case are alike and compiled once."""
    simulation = make_simulation(algorithm, task, cohort=task.num_clients, chunk=2, plan="scan", poison=True)
    before = jax.device_get(simulation.init())
    after, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    return before, jax.device_get(after), metrics


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CASES)
def test_a_client_without_examples_trains_nothing_and_weighs_nothing(name):
    task, algorithm = cases.task_for(cases.kind_of(name)), cases.algorithm(name)
    sizes = np.where(np.arange(task.num_clients) == LONE, 0, task.train.sizes)
    _, state, metrics = run(algorithm, with_sizes(task, sizes), rounds=2)
    assert_finite((state, metrics.train))
    assert not metrics.dropped.any()
    assert (metrics.weight[metrics.ids == LONE] == 0).all()
    assert (metrics.weight[metrics.ids != LONE] > 0).all()
    seen = metrics.train["examples"]  # all algorithms count them
    assert (seen[metrics.ids == LONE] == 0).all()
    np.testing.assert_array_equal(metrics.trained, seen > 0)


@pytest.mark.parametrize("name", CASES)
def test_a_cohort_that_drops_out_entirely_moves_nothing(name):
    task, algorithm = cases.task_for(cases.kind_of(name)), cases.algorithm(name)
    before, after, metrics = run(algorithm, with_nan(task, range(task.num_clients)), rounds=1)
    assert metrics.dropped.all()
    assert not metrics.trained.any()
    assert (metrics.weight == 0).all()
    for left, right in zip(jax.tree.leaves(after), jax.tree.leaves(before)):
        if not jnp.issubdtype(left.dtype, jnp.integer):  # rounds are counted all the same
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("sizes", [[0] * 9, [5] + [0] * 8])
def test_records_of_cohorts_without_examples(sizes):
    task = with_sizes(cases.task(), sizes)
    run = fm.simulate(cases.algorithm("fedavg"), task, rounds=4, cohort=1, eval_every=1, plan="scan")
    assert [record["clients_dropped"] for record in run.records] == [0] * 4
    assert all(record["train_loss"] is None or record["train_loss"] >= 0 for record in run.records)
    assert_finite(run.state)


def test_records_of_cohorts_that_drop_out_entirely():
    task = with_nan(cases.task(), range(9))
    run = fm.simulate(cases.algorithm("fedavg"), task, rounds=2, cohort=3, eval_every=1, plan="scan")
    assert [(record["clients_dropped"], record["train_loss"]) for record in run.records] == [(3, None)] * 2
    assert all(record["bytes_up"] > 0 for record in run.records)


@pytest.mark.parametrize(
    ("size", "momentum"),
    [
        (1e20, 0.9),
        pytest.param(3e38, None, marks=pytest.mark.slow),
        pytest.param(1e20, None, marks=pytest.mark.slow),
        pytest.param(3e38, 0.9, marks=pytest.mark.slow),
    ],
)
def test_an_update_that_no_sum_can_hold_is_left_out_and_counted(size, momentum):
    server = None if momentum is None else optax.sgd(1.0, momentum=momentum)
    model = fm.models.mlp(cases.task(), hidden=(4,))
    algorithm = fm.fedavg(model, optax.sgd(0.1), batch_size=4, server_optimizer=server)

    def with_value(value):
        def train(round, message, client, data):
            client, upload, info = algorithm.train(round, message, client, data)
            mine = data.size == cases.task().train.sizes[3]
            return client, jax.tree.map(lambda a: jnp.where(mine, value, a), upload), info

        return run(algorithm._replace(train=train), cases.task(), rounds=2)

    _, state, metrics = with_value(size)
    assert (metrics.dropped == (metrics.ids == 3)).all()
    assert_finite(state)
    chex.assert_trees_all_equal(state, with_value(np.nan)[1])
