"""What several trainings of one client in one round add up to."""

from functools import cache, partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core import training, trees, work
from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms.sequence import then

NAMES = work.Work._fields
MODEL = fm.models.mlp(cases.task(), hidden=(8,))
FIT = training.supervised(MODEL.apply, optax.sgd(0.1), epochs=2, batch_size=4, augment=None)


def first_of_two(key, params, data):
    params, metrics = FIT(key, params, data)
    return FIT(key, params, data)[0], metrics._asdict()


def loss_alone(key, params, data):
    params, _ = FIT(key, params, data)
    params, metrics = FIT(key, params, data)
    return params, {"loss": metrics.loss}


def better_of_two(key, params, data):
    (one, first), (two, second) = (FIT(jax.random.fold_in(key, n), params, data) for n in range(2))
    better = first.loss < second.loss
    return trees.where(better, one, two), trees.where(better, first, second)._asdict()


def in_a_branch(key, params, data, *, taken):
    params, metrics = FIT(key, params, data)
    again = lambda: FIT(key, params, data)[0]
    return jax.lax.cond((data.size > 0) == taken, again, lambda: params), metrics._asdict()


def in_a_loop(key, params, data, *, number):
    body = lambda _, carry: FIT(key, carry[0], data)
    params, metrics = jax.lax.fori_loop(0, number(data), body, (params, training.nothing_done()))
    return params, metrics._asdict()


def in_a_scan(key, params, data):
    one = lambda params, key: FIT(key, params, data)
    params, metrics = jax.lax.scan(one, params, jax.random.split(key, 3))
    return params, jax.tree.map(lambda values: values[-1], metrics)._asdict()


def in_step(key, params, data):
    """Four copies of the model at once, for two seeds each: what the counts depend on is not mapped over."""
    copies = jax.tree.map(lambda a: jnp.stack([a, 2 * a, 3 * a, 4 * a]), params)
    one = lambda key, params: FIT(key, params, data)
    found, metrics = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jax.random.split(key, 2), copies)
    return jax.tree.map(lambda a: a[0, 0], found), jax.tree.map(lambda a: a[0, 0], metrics)._asdict()


def deep(key, params, data):
    """Two in a jitted function, in a checkpoint, in a branch, in a loop: the last iteration has none."""
    two = jax.jit(lambda params: first_of_two(key, params, data)[0])
    body = lambda n, params: jax.lax.cond(n < 2, jax.checkpoint(two), lambda params: params, params)
    return jax.lax.fori_loop(0, 3, body, params), {}


VARIANTS = {
    "first_of_two": (first_of_two, 2),
    "loss_alone": (loss_alone, 2),
    "better_of_two": (better_of_two, 2),
    "branch_taken": (partial(in_a_branch, taken=True), 2),
    "branch_not_taken": (partial(in_a_branch, taken=False), 1),
    "loop": (partial(in_a_loop, number=lambda data: 3), 3),
    "traced_loop": (partial(in_a_loop, number=lambda data: data.size // 4), 3),
    "scan": (in_a_scan, 3),
    "in_step": (in_step, 8),
    "deep": (deep, 4),
}


def contract(train):
    return lambda key, common, message, client, data: (client, *train(key, message, data))


@cache
def work_of(train):
    """Work of one client with 12 examples, as the engine counts it."""
    data = cases.data_of(cases.task(), 1)
    arguments = (jax.random.key(0), (), MODEL.init(jax.random.key(1)), (), data)
    metrics = jax.jit(work.count(contract(train), *arguments).call)(*arguments)[2]
    return np.array([metrics[name] for name in NAMES])


def once(key, params, data):
    params, metrics = FIT(key, params, data)
    return params, metrics._asdict()


@pytest.mark.parametrize("name", VARIANTS)
def test_several_trainings_add_up(name):
    train, times = VARIANTS[name]
    assert work_of(once)[:3].tolist() == [6, 24, 24]
    np.testing.assert_array_equal(work_of(train), times * work_of(once))


def test_counts_that_are_mapped_over_add_up_each_for_itself():
    """One training on all examples and one on none, in step: the second steps over as many places."""

    def train(key, params, data):
        one = lambda size: FIT(key, params, data._replace(size=size))[0]
        return jax.tree.map(lambda a: a[0], jax.vmap(one)(jnp.stack([data.size, 0 * data.size]))), {}

    np.testing.assert_array_equal(work_of(train), work_of(once) * [1, 1, 2, 1, 1])


def test_records_hold_the_work_of_all_trainings():
    base = fm.fedavg(MODEL, optax.sgd(0.1), epochs=2, batch_size=4)
    both = [
        make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="blocks:2")
        for algorithm in (base, base._replace(train=contract(loss_alone)))
    ]
    single, double = (simulation.run(simulation.init(), 0, 2)[1].train for simulation in both)
    for name in NAMES:
        np.testing.assert_array_equal(double[name], 2 * single[name])
    assert both[0].stats().padding_efficiency == both[1].stats().padding_efficiency


def test_loops_of_an_algorithms_own_count_beside_training():
    def train(key, params, data):
        params, metrics = once(key, params, data)
        mine = training.LocalMetrics(params["dense1"]["bias"][0], *map(jnp.float32, range(1, 6)))
        assert training.count(mine) is not None
        return params, metrics

    np.testing.assert_array_equal(work_of(train), work_of(once) + np.arange(1, 6))


def test_a_training_may_count_otherwise():
    fit = partial(FIT, account=lambda metrics: metrics._replace(flops=metrics.steps * 10))
    train = lambda key, params, data: (fit(key, params, data)[0], {})
    np.testing.assert_array_equal(work_of(train)[[0, 3]], [6, 60])


def test_algorithms_in_sequence_keep_their_own_work():
    """The first has no training that counts by itself, and says what it does; the second has."""
    first = fm.fedavg(MODEL, optax.sgd(0.1), epochs=2, batch_size=4)
    told = {"loss": jnp.float32(1), "flops": jnp.float32(7), "steps": jnp.float32(0)}
    second = first._replace(train=contract(first_of_two))
    first = first._replace(train=lambda key, common, message, client, data: (client, message, told))
    both = then(first, second, done=lambda _: jnp.array(True), handover=lambda common, server, _: server)
    simulation = make_simulation(both, cases.task(), cohort=9, chunk=2, plan="scan")
    train = simulation.run(simulation.init(), 0, 2)[1].train
    assert train["flops"][0].tolist() == [7] * 9
    assert train["flops"][1, 1] == 2 * work_of(once)[3]


def test_training_that_cannot_be_counted_is_refused():
    mesh = jax.sharding.Mesh(jax.devices()[:1], "x")
    everywhere = jax.sharding.PartitionSpec()

    def train(key, params, data):
        inside = lambda params: once(key, params, data)[0]
        return jax.shard_map(inside, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)(
            params
        ), {}

    with pytest.raises(UserError, match="training inside shard_map must be countable"):
        work_of(train)


def test_a_state_is_what_it_was():
    """Counting is no part of what is trained: the same bits as the function itself gives."""
    algorithm, task = cases.algorithm("fedskel"), cases.task()
    data, state = cases.data_of(task, 1), algorithm.init(jax.random.key(0), task)
    assert isinstance(state, State)
    client = jax.tree.map(lambda a: a[1], state.clients)
    arguments = (jax.random.key(2), (), algorithm.send(state.server, jnp.int32(1)), client, data)
    mine = jax.jit(algorithm.train)(*arguments)
    counted = jax.jit(work.count(algorithm.train, *arguments).call)(*arguments)
    assert sorted(mine[2]) == sorted(counted[2])
    jax.tree.map(np.testing.assert_array_equal, mine, (*counted[:2], dict(counted[2])))
