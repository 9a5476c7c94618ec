"""Accuracies under batch statistics depend on the examples alone, not on their order or clients' ids."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import optax
import pytest
from remembered import without_rounds

import fedjax_masks as fm
from fedjax_masks.aot.compilation import parts_of
from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import index_of, synthetic_task
from fedjax_masks.simulation import make_simulation as make_whole
from fedjax_masks.simulation.arrays import train_examples, with_shuffled_test
from fedjax_masks.simulation.evaluate import lower_evaluation
from fedjax_masks.simulation.runs import lay_out_runs
from fedjax_masks.simulation.tracing import trace_client

RAGGED = [7, 130, 0, 33, 100, 1, 58]
EVEN = [100, 4, 50, 20, 10, 25, 100]  # each divides a batch of 100


def make_task(sizes):
    """A task with so many test examples of each client, and some that no client has."""
    task = synthetic_task((6,), 3, [5] * len(sizes), seed=1, noise=1.5, test_per_client=60)
    rows = np.random.default_rng(0).permutation(len(task.test_labels))
    return replace(task, test=index_of(np.split(rows, np.cumsum(sizes))[:-1]))


def make_simulation(*args, **options):
    """A simulation that evaluates and does not train."""
    with without_rounds():
        return make_whole(*args, **options)


def parts(index):
    return [index.rows[start : start + size] for start, size in zip(index.offsets, index.sizes)]


def renumbered(task):
    return replace(task, train=index_of(parts(task.train)[::-1]), test=index_of(parts(task.test)[::-1]))


def by_label(task):
    """The same test set, sorted, and every client's part of it in another order."""
    order = np.argsort(task.test_labels, kind="stable")
    place = np.argsort(order)
    return replace(
        task,
        test_inputs=task.test_inputs[order],
        test_labels=task.test_labels[order],
        test=index_of([place[rows][::-1] for rows in parts(task.test)]),
    )


def model_of(task):
    return fm.models.mlp(task, hidden=(16,), norm="batch")


def algorithm(task):
    """One model for all, which is also every client's personal one."""
    base = fm.fedavg(model_of(task), optax.sgd(0.1), batch_size=4)
    return base._replace(predict={**base.predict, "personal": base.predict["global"]})


TASKS = {"same": lambda task: task, "renumbered": renumbered, "by label": by_label}


@cache
def evaluate(name="same", plan="scan"):
    task = TASKS[name](make_task(RAGGED))
    simulation = make_simulation(algorithm(task), task, cohort=2, chunk=1, plan=plan)
    return simulation.evaluate(simulation.init())[0]


@cache
def evaluate_in_step(name="same"):
    """Two runs in step."""
    task = TASKS[name](make_task(RAGGED))
    both = {"values": {}, "seeds": [0, 1]}
    batch = make_simulation(lambda _: algorithm(task), task, cohort=2, chunk=1, plan="scan", **both)
    return batch.evaluate(batch.init())


@pytest.mark.parametrize("plan", ["scan", pytest.param("blocks:3,mesh:2", marks=pytest.mark.slow)])
def test_ids_of_clients_and_the_order_of_the_test_set_do_not_matter(plan):
    want = evaluate(plan=plan) if plan != "scan" else evaluate()
    assert np.isnan(want.personal).tolist() == [size == 0 for size in RAGGED]
    other = evaluate("renumbered", plan)
    np.testing.assert_array_equal(other.personal[::-1], want.personal)
    ordered = evaluate("by label", plan)
    np.testing.assert_array_equal(ordered.personal, want.personal)
    assert ordered.global_accuracy == other.global_accuracy == want.global_accuracy


def test_runs_in_step_are_evaluated_alike():
    found = [evaluate_in_step(), evaluate_in_step("renumbered")]
    for one, two in zip(*found):
        np.testing.assert_array_equal(one.personal, two.personal[::-1])
        assert one.global_accuracy == two.global_accuracy
    np.testing.assert_array_equal(found[0][0].personal, evaluate().personal)


def test_a_batch_is_filled_with_examples_of_its_client():
    """Each example is repeated equally often, so the statistics are those of the client's examples."""
    task = make_task(EVEN)
    model = model_of(task)
    simulation = make_simulation(algorithm(task), task, cohort=2, chunk=1)
    params = jax.device_get(simulation.init()).server.params
    own = [
        np.mean(np.asarray(model.apply(params, task.test_inputs[rows])).argmax(-1) == task.test_labels[rows])
        for rows in parts(task.test)
    ]
    np.testing.assert_allclose(simulation.evaluate(simulation.init())[0].personal, own, rtol=1e-12)


def shared_by_all(task, norm):
    return fm.fedavg(fm.models.mlp(task, hidden=(16,), norm=norm), optax.sgd(0.1), batch_size=4)


def test_the_global_model_is_evaluated_like_personal_models():
    """Under batch statistics, a batch holds one client's examples."""
    task = make_task(RAGGED)
    shared, both = shared_by_all(task, "batch"), {"values": {}, "seeds": [0, 1]}
    alone = make_simulation(shared, task, cohort=2, chunk=1, plan="scan")
    batch = make_simulation(lambda _: shared, task, cohort=2, chunk=1, plan="scan", **both)
    found = [*alone.evaluate(alone.init()), *batch.evaluate(batch.init())]
    for one, two in zip(found, [evaluate(), *evaluate_in_step()], strict=True):
        np.testing.assert_array_equal(one.personal, two.personal)
        assert one.global_accuracy == two.global_accuracy


@pytest.mark.slow
def test_a_global_model_without_batch_statistics_is_evaluated_as_well_as_personal_models():
    task = make_task(RAGGED)
    shared = shared_by_all(task, None)
    owned = shared._replace(predict={**shared.predict, "personal": shared.predict["global"]})
    found = []
    for each in (shared, owned):
        simulation = make_simulation(each, task, cohort=2, chunk=1, plan="scan")
        found += simulation.evaluate(simulation.init())
    np.testing.assert_array_equal(*(one.personal for one in found))
    assert found[0].global_accuracy == found[1].global_accuracy


@pytest.mark.parametrize("norm", ["batch", None])
def test_only_batch_statistics_need_a_second_pass_by_client(norm):
    task, shared = make_task(RAGGED), shared_by_all(make_task(RAGGED), norm)
    make, _ = trace_client(lambda _: shared, (), task, jax.random.key(0), train_examples(task))
    assert ("personal" in make(()).predict) == (norm == "batch")


@pytest.mark.slow
def test_a_normalised_residual_network_shared_by_all_is_evaluated_by_client():
    task = synthetic_task((8, 8, 1), 3, [5, 5, 5], seed=1, noise=1.5, test_per_client=7)
    shared = fm.fedavg(fm.models.resnet20(task, norm="batch", channels=(1, 1, 1)), optax.sgd(0.1))
    make, _ = trace_client(lambda _: shared, (), task, jax.random.key(0), train_examples(task))
    assert sorted(make(()).predict) == ["global", "personal"]


def test_content_alone_orders_the_test_set():
    task = make_task(RAGGED)
    task = replace(task, test_inputs=task.test_inputs.copy(), test_labels=task.test_labels.copy())
    task.test_inputs[3], task.test_labels[3] = task.test_inputs[8], task.test_labels[8]  # twins
    one, two = with_shuffled_test(task), with_shuffled_test(by_label(task))
    np.testing.assert_array_equal(one.test_inputs, two.test_inputs)
    np.testing.assert_array_equal(one.test_labels, two.test_labels)
    assert sorted(map(tuple, one.test_inputs)) == sorted(map(tuple, task.test_inputs))
    for before, after, again in zip(parts(task.test), parts(one.test), parts(two.test)):
        assert (np.diff(after) > 0).all()
        np.testing.assert_array_equal(one.test_inputs[after], two.test_inputs[again])
        assert sorted(map(tuple, one.test_inputs[after])) == sorted(map(tuple, task.test_inputs[before]))
    # Labels are spread over the whole order: a batch of any part sees all of them.
    share = [np.mean(one.test_labels[part::2] == 0) for part in (0, 1)]
    assert np.abs(np.diff(share)) < 0.1
    assert len(set(one.test_labels[:20].tolist())) == 3


@pytest.mark.parametrize(
    ("make", "batch_size"),
    [(fm.fedavg, 1), (fm.fedmask, 1), (fm.ecofed, 1), (fm.perfedavg, 2), (fm.perfedavg, 3)],
)
def test_batch_statistics_of_one_example_are_refused(make, batch_size):
    task = make_task(EVEN)
    trained = make(model_of(task), optax.sgd(0.1), batch_size=batch_size)
    with pytest.raises(UserError, match="norm='batch': must see two examples or more at a time"):
        make_whole(trained, task, cohort=2, chunk=1)
    with pytest.raises(UserError, match="norm='batch'"):
        make_whole(lambda _: trained, task, values={}, seeds=[0, 1], cohort=2, chunk=1)


def test_group_normalisation_takes_one_example():
    task = make_task(EVEN)
    trained = fm.fedavg(fm.models.mlp(task, hidden=(4,), norm="group"), optax.sgd(0.1), batch_size=1)
    assert fm.simulate(trained, task, rounds=1, cohort=2).records[-1]["train_loss"] > 0


def test_the_command_line_refuses_batches_of_one_and_writes_nothing(tmp_path, capsys):
    flags = [
        "--algorithm",
        "fedavg",
        "--model",
        "cnn",
        "--set",
        "model.norm=batch",
        "--batch-size",
        "1",
        "--rounds",
        "1",
    ]
    assert main.main(["run", *flags, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: norm='batch': must see two examples or more")
    assert not list(tmp_path.iterdir())


def accuracy(predict, state, client, task, rows):
    row = None if client is None else jax.tree.map(lambda a: a[client], state.clients)
    logits = np.asarray(predict(state.server, row, task.test_inputs[rows]))
    return np.mean(logits.argmax(-1) == task.test_labels[rows])


@pytest.mark.parametrize("name", ["fedavg", "lotteryfl", "local"])
def test_every_model_is_evaluated_under_its_name(name):
    """The global one on the whole test set, all others on each client's part of it."""
    task = make_task(EVEN)
    trained = getattr(fm, name)(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1))
    simulation = make_simulation(trained, task, cohort=2, chunk=1, plan="scan")
    state, rng = jax.device_get(simulation.init()), np.random.default_rng(0)

    def changed(leaf):
        """As if all clients had trained."""
        noise = rng.normal(size=leaf.shape)
        return noise > 0 if leaf.dtype == bool else (leaf + noise).astype(leaf.dtype)

    state = jax.device_put(jax.tree.map(changed, state))
    found = simulation.evaluate(state)[0]
    assert set(found.probes) == set(trained.predict) - {"global", "personal"}
    assert (found.global_accuracy is None) == ("global" not in trained.predict)
    by_client = {"personal": found.personal, **found.probes}
    for label, predict in trained.predict.items():
        if label == "global":
            want = accuracy(predict, state, None, task, np.arange(len(task.test_labels)))
            np.testing.assert_allclose(found.global_accuracy, want, rtol=1e-6)
        else:
            rows = enumerate(parts(task.test))
            want = [accuracy(predict, state, client, task, mine) for client, mine in rows]
            np.testing.assert_allclose(by_client[label], want, rtol=1e-6)


@pytest.mark.parametrize("plan", ["scan", "blocks:3"])
def test_evaluation_copies_the_states_of_a_block_alone(plan):
    task = synthetic_task((64,), 3, [4] * 60)
    algorithm = fm.local(fm.models.mlp(task, hidden=(256,)), optax.sgd(0.1))
    parts = parts_of(algorithm, task, cohort=3, rounds=1, devices=1)
    first, layout = lay_out_runs(f"{plan},mesh:1", cohort=3, num_runs=1)
    program = lower_evaluation(parts, layout(first), task.num_clients)["personal"].compile()
    sizes = program.memory_analysis()
    assert sizes.temp_size_in_bytes < sizes.argument_size_in_bytes / 4
