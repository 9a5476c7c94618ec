"""One algorithm after another."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.communication.payload import Installed
from fedjax_masks.core.algorithm import Info, Schedule
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.work import no_work
from fedjax_masks.transforms.sequence import then

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def task():
    return cases.task()


@pytest.fixture(scope="module")
def model(task):
    return fm.models.mlp(task, hidden=(8,))


def at_once(first, second):
    """The second takes over in round 1, from the server's initial state of its own."""
    return then(first, second, done=lambda server: jnp.array(True), handover=lambda early, late: late)


def run(algorithm, task, rounds, **options):
    simulation = fm.make_simulation(algorithm, task, cohort=4, chunk=rounds, **options)
    state, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    return jax.device_get(state), metrics


def test_an_algorithm_handed_over_to_itself_goes_on_as_it_was(model, task):
    alone = fm.fedavg(model, SGD, batch_size=4)
    twice = then(alone, alone, done=lambda server: jnp.asarray(True), handover=lambda early, late: early)
    # The sequence splits the initial key.
    early_key = lambda key, task: alone.init(jax.random.split(key)[0], task)
    reference, wanted = run(alone._replace(init=early_key), task, 3)
    state, metrics = run(twice, task, 3, poison=True)
    chex.assert_trees_all_close(state.server.second.params, reference.server.params, rtol=1e-6)
    chex.assert_trees_all_equal(metrics.bytes_up, wanted.bytes_up)
    chex.assert_trees_all_equal(metrics.bytes_down, wanted.bytes_down)
    assert sorted(metrics.train) == sorted(wanted.train)
    assert not metrics.server
    x = jnp.asarray(task.test_inputs[:4])
    logits = twice.predict["global"](state.server, None, x)
    chex.assert_trees_all_close(logits, model.apply(reference.server.params, x), rtol=1e-5)


def counting(algorithm, number):
    """The algorithm; clients, and the server for each client, count its visits from a number on."""

    def init(key, task):
        counts = jnp.full(task.num_clients, number)
        return algorithm.init(key, task)._replace(clients=counts, profiles=counts)

    def train(round, message, client, data):
        return client + 1, *algorithm.train(round, message, (), data)[1:]

    def receive(round, server, profile, upload, weight):
        return profile + 1, algorithm.receive(round, server, (), upload, weight)[1]

    return algorithm._replace(init=init, train=train, receive=receive)


def installing(algorithm):
    """The algorithm, whose clients have had ten numbers since before the first round."""
    return algorithm._replace(
        send=lambda *args: (algorithm.send(*args), Installed(jnp.zeros(10))),
        train=lambda round, message, client, data: algorithm.train(round, message[0], client, data),
    )


def reporting(algorithm, **facts):
    """The algorithm, whose server reports facts of merging."""

    def merge(*args):
        return algorithm.merge(*args)[0], Info(**facts)

    return algorithm._replace(merge=merge)


@pytest.fixture(scope="module")
def busy(model, task):
    """Three rounds of two algorithms that count visits, install numbers, and report facts of merging."""
    plain = installing(fm.fedavg(model, SGD, batch_size=4))
    work = no_work()._replace(flops=jnp.float32(7))
    first = reporting(counting(plain, -1), loss=jnp.float32(1), work=work, extra={"a": 1, "b": 2})
    second = reporting(counting(plain, 10), extra={"b": 3.0})
    simulation = fm.make_simulation(at_once(first, second), task, cohort=4, chunk=3, poison=True)
    state, (metrics,) = simulation.run(simulation.init(), 0, 3)
    return jax.device_get(state), metrics, simulation.setup_bytes


def test_states_and_profiles_of_one_algorithm_rest_while_the_other_runs(busy, task):
    state, metrics, _ = busy
    first, *rest = (np.isin(np.arange(task.num_clients), ids) for ids in metrics.ids)
    for found in (state.clients, state.profiles):
        np.testing.assert_array_equal(found.first, -1 + first)
        np.testing.assert_array_equal(found.second, 10 + sum(rest))


@pytest.mark.slow
def test_versions_and_masks_of_one_algorithm_rest_while_the_other_runs(model, task):
    """Versions of a mask before the handover, masks after it: -1 and whole where nobody has been."""
    both = at_once(fm.feddst(model, SGD, batch_size=4), fm.lotteryfl(model, SGD, batch_size=4, threshold=0.0))
    state, metrics = run(both, task, 3, poison=True)
    versions, masks = state.profiles
    first = np.isin(np.arange(task.num_clients), metrics.ids[0])
    later = np.isin(np.arange(task.num_clients), metrics.ids[1:])
    np.testing.assert_array_equal(versions, np.where(first, 0, -1))
    assert masks["dense1"][~later].all()
    assert not masks["dense1"][later].all()
    chex.assert_trees_all_equal(state.clients.second.mask, masks)


@pytest.mark.slow
def test_models_and_facts_are_those_that_both_have(model, task):
    def reporting(algorithm, **facts):
        def train(*args):
            client, upload, info = algorithm.train(*args)
            return client, upload, info._replace(extra=facts)

        return algorithm._replace(train=train)

    alone = reporting(fm.local(model, SGD, batch_size=4), density=1.0, validation_accuracy=0.5)
    alone = alone._replace(predict=alone.predict | {"personal_accuracy_before": alone.predict["personal"]})
    shared = reporting(fm.lgfedavg(model, SGD, batch_size=4, shared=("dense2",)), density=0.25)
    both = at_once(alone, shared)
    assert list(both.predict) == ["personal"]
    state, metrics = run(both, task, 2)
    assert metrics.train["density"].tolist() == [[1.0] * 4, [0.25] * 4]
    assert "validation_accuracy" not in metrics.train
    client, x = jax.tree.map(lambda a: a[0], state.clients), jnp.asarray(task.test_inputs[:4])
    for later, params in ((False, client.first), (True, client.second | state.server.second.params)):
        logits = both.predict["personal"](state.server._replace(later=later), client, x)
        chex.assert_trees_all_close(logits, model.apply(params, x), rtol=1e-5)


@pytest.mark.slow
def test_a_server_that_trains_reports_its_work_in_its_own_rounds(model, task):
    average = fm.fedavg(model, SGD, batch_size=4)
    eco = fm.ecofed(model, SGD, batch_size=4, split="dense1", period=1)
    eco = eco._replace(schedule=average.schedule)
    _, metrics = run(at_once(average, eco), task, 2)
    assert metrics.server["steps"][0] == 0 < metrics.server["steps"][1]
    assert (metrics.train["steps"][0] > 0).all()
    assert not metrics.train["steps"][1].any()
    assert (metrics.train["flops"] > 0).all()


def test_facts_of_merging_are_those_that_both_report(busy):
    _, metrics, _ = busy
    assert metrics.server["b"].tolist() == [2, 3, 3]
    assert metrics.server["flops"].tolist() == [7, 0, 0]
    assert not {"a", "loss"} & metrics.server.keys()


def test_what_is_installed_is_counted_for_both(busy):
    _, _, setup_bytes = busy
    assert setup_bytes == 2 * 40


def test_algorithms_of_different_schedules_are_refused(model):
    plain = fm.fedavg(model, SGD)
    for other in (Schedule(select=lambda index, draw: draw(0)), Schedule(num_tiers=2)):
        with pytest.raises(UserError, match=r"^second\.schedule: must equal first\.schedule"):
            at_once(plain, plain._replace(schedule=other))
