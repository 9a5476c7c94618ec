"""The sum of the work of several trainings of one client in one round."""

from dataclasses import replace
from functools import cache, partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core import training, trees, work
from fedjax_masks.core.algorithm import Info, Round, Work
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.training import Trainer
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms.sequence import then

MODEL = fm.models.mlp(cases.task(), hidden=(8,))
TRAINER = Trainer(optax.sgd(0.1), epochs=2, batch_size=4)
FIT = TRAINER.supervised(MODEL.apply)


def once(round, params, data):
    return FIT(round, params, data)


def first_of_two(round, params, data):
    params, info = FIT(round, params, data)
    return FIT(round, params, data)[0], info


def loss_alone(round, params, data):
    params, _ = FIT(round, params, data)
    params, info = FIT(round, params, data)
    return params, Info(info.loss)


def better_of_two(round, params, data):
    keys = (jax.random.fold_in(round.key, number) for number in range(2))
    (one, first), (two, second) = (FIT(round._replace(key=key), params, data) for key in keys)
    better = first.loss < second.loss
    return trees.where(better, one, two), trees.where(better, first, second)


def in_a_branch(round, params, data, *, taken):
    params, info = FIT(round, params, data)
    again = lambda: FIT(round, params, data)[0]
    return jax.lax.cond((data.size > 0) == taken, again, lambda: params), info


def in_a_loop(round, params, data, *, number):
    def body(_, carry):
        params, info = FIT(round, carry[0], data)
        return params, info.loss

    params, loss = jax.lax.fori_loop(0, number(data), body, (params, jnp.float32(0)))
    return params, Info(loss)


def in_a_scan(round, params, data):
    one = lambda params, key: FIT(round._replace(key=key), params, data)
    params, info = jax.lax.scan(one, params, jax.random.split(round.key, 3))
    return params, jax.tree.map(lambda values: values[-1], info)


def in_step(round, params, data):
    """Four copies of the model at once, with two keys each: the counts have no axis for either."""
    copies = jax.tree.map(lambda a: jnp.stack([a, 2 * a, 3 * a, 4 * a]), params)
    one = lambda key, params: FIT(round._replace(key=key), params, data)
    found, info = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jax.random.split(round.key, 2), copies)
    return jax.tree.map(lambda a: a[0, 0], found), jax.tree.map(lambda a: a[0, 0], info)


def deep(round, params, data):
    """Two in a jitted function, in a checkpoint, in a branch, in a loop: the last iteration has none."""
    two = jax.jit(lambda params: first_of_two(round, params, data)[0])
    body = lambda n, params: jax.lax.cond(n < 2, jax.checkpoint(two), lambda params: params, params)
    return jax.lax.fori_loop(0, 3, body, params), Info()


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
    """The training as a function of the contract: its first result is the upload."""
    return lambda round, message, client, data: (client, *train(round, message, data))


@cache
def work_of(train):
    """Work of one client with 12 examples, as the engine counts it."""
    data = cases.data_of(cases.task(), 1)
    arguments = (Round(jax.random.key(0), jnp.int32(0)), MODEL.init(jax.random.key(1)), (), data)
    count = work.count(contract(train), *arguments).call
    return np.array(jax.jit(lambda *arguments: count(*arguments)[1])(*arguments))


@pytest.mark.parametrize("name", VARIANTS)
def test_several_trainings_add_up(name):
    train, times = VARIANTS[name]
    assert work_of(once)[:3].tolist() == [6, 24, 24]
    np.testing.assert_array_equal(work_of(train), times * work_of(once))


def test_counts_with_an_axis_of_vmap_add_up_over_it():
    """One training on all examples and one on none, in step: the second steps over as many slots."""

    def train(round, params, data):
        one = lambda size: FIT(round, params, data._replace(size=size))[0]
        return jax.tree.map(lambda a: a[0], jax.vmap(one)(jnp.stack([data.size, 0 * data.size]))), Info()

    np.testing.assert_array_equal(work_of(train), work_of(once) * [1, 1, 2, 1, 1])


@pytest.mark.slow
def test_records_hold_the_work_of_all_trainings():
    base = fm.fedavg(MODEL, optax.sgd(0.1), epochs=2, batch_size=4)
    both = [
        make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="blocks:2")
        for algorithm in (base, base._replace(train=contract(loss_alone)))
    ]
    single, double = (simulation.run(simulation.init(), 0, 2)[1][0].train for simulation in both)
    for name in Work._fields:
        np.testing.assert_array_equal(double[name], 2 * single[name])
    assert both[0].stats().padding_efficiency == both[1].stats().padding_efficiency


def test_loops_of_an_algorithm_count_beside_training():
    def train(round, params, data):
        params, info = once(round, params, data)
        training.report_work(params["dense1"]["bias"][0], Work(*map(jnp.float32, range(1, 6))))
        return params, info

    np.testing.assert_array_equal(work_of(train), work_of(once) + np.arange(1, 6))


def test_a_training_may_restate_its_work():
    fit = partial(FIT, account=lambda done: done._replace(flops=done.steps * 10))
    np.testing.assert_array_equal(work_of(fit)[[0, 3]], [6, 60])


def test_a_function_without_loops_does_no_work():
    assert not work.count(contract(lambda round, params, data: (params, Info())), *[()] * 4).has_work
    assert not work_of(lambda round, params, data: (params, Info())).any()


def test_fields_of_a_trainer_change_no_count_but_their_own():
    twice = replace(TRAINER, epochs=4, clip_norm=1.0, schedule=lambda index: 0.5)
    expected = 2 * work_of(once)
    got = work_of(lambda round, params, data: twice.supervised(MODEL.apply)(round, params, data))
    np.testing.assert_array_equal(got[:4], expected[:4])


def test_algorithms_in_sequence_keep_their_work_apart():
    """The first has no counted loop, and states its work; the second has two."""
    stated = Info(jnp.float32(1), work.no_work()._replace(flops=jnp.float32(7)))
    first = fm.fedavg(MODEL, optax.sgd(0.1), epochs=2, batch_size=4)
    second = first._replace(train=contract(first_of_two))
    first = first._replace(train=contract(lambda round, params, data: (params, stated)))
    both = then(first, second, done=lambda _: jnp.array(True), handover=lambda server, _: server)
    simulation = make_simulation(both, cases.task(), cohort=9, chunk=2, plan="scan")
    train = simulation.run(simulation.init(), 0, 2)[1][0].train
    assert train["flops"][0].tolist() == [7] * 9
    assert train["flops"][1, 1] == 2 * work_of(once)[3]


def test_work_of_receive_and_merge_is_the_servers():
    """Reception works once for each upload that arrived, merging once a round."""
    plain = fm.fedavg(MODEL, optax.sgd(0.1), batch_size=4)
    one = Work(*map(jnp.float32, range(1, 6)))

    def receive(round, server, profile, upload, weight):
        training.report_work(weight, one)
        return plain.receive(round, server, profile, upload, weight)

    def merge(round, server, total):
        training.report_work(total.weight, one)
        return plain.merge(round, server, total)[0], Info(jnp.float32(3), extra={"mine": jnp.float32(4)})

    algorithm = plain._replace(receive=receive, merge=merge)
    simulation = make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="blocks:2")
    server = simulation.run(simulation.init(), 0, 2)[1][0].server
    for name, number in zip(Work._fields, range(1, 6)):
        assert server[name].tolist() == [6 * number] * 2
    assert server["loss"].tolist() == [3, 3]
    assert server["mine"].tolist() == [4, 4]


def test_training_that_cannot_be_counted_is_refused():
    mesh = jax.sharding.Mesh(jax.devices()[:1], "x")
    everywhere = jax.sharding.PartitionSpec()

    def train(round, params, data):
        inside = lambda params: once(round, params, data)[0]
        mapped = jax.shard_map(inside, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
        return mapped(params), Info()

    with pytest.raises(UserError, match="must not train inside shard_map"):
        work_of(train)


def test_counting_changes_no_bit_of_a_result():
    algorithm, task = cases.algorithm("fedskel"), cases.task()
    data, state = cases.data_of(task, 1), algorithm.init(jax.random.key(0), task)
    client, profile = (jax.tree.map(lambda a: a[1], rows) for rows in state[1:])
    round = Round(jax.random.key(2), jnp.int32(0))
    arguments = (round, algorithm.send(round, state.server, profile), client, data)
    plain = jax.jit(algorithm.train)(*arguments)
    counted, _ = jax.jit(work.count(algorithm.train, *arguments).call)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, counted, plain)


def test_lanes_without_a_client_count_as_padding():
    """Two tiers of one client each, in blocks of two: half of all lanes are empty."""
    task = synthetic_task((6,), 3, [8, 8])
    algorithm = fm.heterofl(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1), ratios=(1.0, 0.5), batch_size=4)
    efficiency = {}
    for plan in ("scan", "vmap"):
        simulation = make_simulation(algorithm, task, cohort=2, chunk=1, plan=plan)
        simulation.run(simulation.init(), 0, 1)
        efficiency[plan] = simulation.stats().padding_efficiency
    assert efficiency == {"scan": 1.0, "vmap": 0.5}
