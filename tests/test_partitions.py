"""Partitions: published numbers, promises to every client, and refusals."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_masks.claims.divisions import CLASSES, DIVISION, balanced
from fedjax_masks.data import MODIFIERS, PARTITIONS, label_histogram, load_task, rows_of, task_from_arrays
from fedjax_masks.data.specs import parse

TEXTS = [
    "iid",
    "shards:2",
    "dirichlet:0.5",
    "lotteryfl:2:0.25",
    "lotteryfl:3:1:5",
    "quantity:0.5",
    "natural",
    "noise:0.1",
    "rotation",
    "shards:2+corrupt_labels:0,3",
]


def toy(text, clients=6, seed=0):
    rng = np.random.default_rng(1)
    x, y = rng.random((400, 4, 4, 1)), rng.integers(5, size=400)
    tx, ty = rng.random((90, 4, 4, 1)), rng.integers(5, size=90)
    ids = {"client_train": np.arange(400) % 8, "client_test": np.arange(90) % 8}
    return task_from_arrays(x, y, tx, ty, clients=clients, partition=text, seed=seed, **ids)


def test_dirichlet_matches_the_published_draw():
    task = balanced(5000, clients=10, partition="dirichlet:0.1", seed=2020)
    assert tuple(task.train.sizes) == DIVISION
    for client, classes in CLASSES.items():
        assert tuple(label_histogram(task)[client]) == classes


@pytest.mark.parametrize("text", TEXTS)
def test_clients_own_disjoint_rows_and_draws_follow_the_seed(text):
    task, again, other = toy(text), toy(text), toy(text, seed=1)
    rows = task.train.rows
    assert rows.dtype == task.train.offsets.dtype == task.train.sizes.dtype == np.int32
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(task.labels)
    assert task.train.sizes.min() >= 1
    assert task.test.sizes.min() >= 1
    assert task.test.rows.max() < len(task.test_labels)
    np.testing.assert_array_equal(task.train.offsets, np.cumsum(task.train.sizes) - task.train.sizes)
    np.testing.assert_array_equal(rows, again.train.rows)
    np.testing.assert_array_equal(task.inputs, again.inputs)
    np.testing.assert_array_equal(task.test.rows, again.test.rows)
    assert not np.array_equal(rows, other.train.rows)


@pytest.mark.parametrize("text", ["iid", "shards:2", "dirichlet:0.5", "quantity:0.5"])
def test_no_example_is_lost(text):
    assert len(toy(text).train.rows) == 400


def test_shards_hold_few_labels_and_all_their_test_images():
    task = balanced(40, clients=20, partition="shards:2")
    histogram = label_histogram(task)
    assert (histogram.sum(1) == 20).all()
    assert ((histogram > 0).sum(1) <= 2).all()
    for client in range(20):
        held = task.test_labels[rows_of(task.test, client)]
        np.testing.assert_array_equal(np.bincount(held, minlength=10), 100 * (histogram[client] > 0))


@pytest.mark.parametrize(("balance", "size"), [(1.0, 40), (0.25, 25)])
def test_lotteryfl_cuts_the_second_shard(balance, size):
    task = balanced(200, clients=50, partition=f"lotteryfl:2:{balance}")
    histogram = label_histogram(task)
    assert (task.train.sizes == size).all()
    # Shards are pure here, as the class size is a multiple of theirs.
    for counts in histogram:
        assert sorted(counts[counts > 0].tolist()) in ([size], sorted([20, size - 20]))


def test_proportional_test_sets_follow_training_labels():
    task = balanced(500, clients=10, partition="dirichlet:0.5")
    for client, counts in enumerate(label_histogram(task)):
        held = np.bincount(task.test_labels[rows_of(task.test, client)], minlength=10)
        assert len(np.unique(rows_of(task.test, client))) == held.sum() == task.test.sizes[client]
        np.testing.assert_array_less(np.abs(held - held.sum() * counts / counts.sum()), 1 + 1e-9)


def test_iid_test_sets_are_equal_parts():
    task = balanced(40, clients=10)
    np.testing.assert_array_equal(np.sort(task.test.rows), np.arange(1000))
    assert (task.test.sizes == 100).all()
    assert (balanced(200, clients=1500).test.sizes == 1).all()


def test_any_number_of_clients_draws_from_the_same_examples():
    task, again = (balanced(20, clients=5000, partition="draw:12:2", seed=seed) for seed in (0, 0))
    np.testing.assert_array_equal(task.train.rows, again.train.rows)
    histogram = label_histogram(task)
    assert task.num_clients == 5000 > len(task.labels)
    assert (histogram.sum(1) == 12).all()
    assert (histogram > 0).sum(1).max() == 2
    # Labels, and the examples of a label, are all as likely: 6000 draws of each label, 300 of each example.
    assert np.abs(histogram.sum(0) - 6000).max() < 6 * np.sqrt(6000 * 12)
    assert np.abs(np.bincount(task.train.rows, minlength=200) - 300).max() < 6 * np.sqrt(300 * 12)
    for client in range(0, 5000, 500):
        held = task.test_labels[rows_of(task.test, client)]
        np.testing.assert_array_equal(np.bincount(held, minlength=10), histogram[client])
    every = balanced(20, clients=50, partition="draw:200")
    assert (label_histogram(every) > 0).all()


def test_natural_follows_the_ids(caplog):
    names = np.array(["bea", "ann", "cas", "ann"] * 5)
    x, y = np.arange(20, dtype=np.float32)[:, None], np.arange(20) % 2
    task = task_from_arrays(x, y, x, y, partition="natural", client_train=names, client_test=names)
    assert task.num_clients == 3
    for client, name in enumerate(["ann", "bea", "cas"]):
        np.testing.assert_array_equal(rows_of(task.train, client), np.flatnonzero(names == name))
        np.testing.assert_array_equal(rows_of(task.test, client), np.flatnonzero(names == name))
    with pytest.raises(ValueError, match="clients=4: must be at most 3, the clients of the data set"):
        task_from_arrays(x, y, x, y, partition="natural", clients=4, client_train=names, client_test=names)
    only = names != "cas"
    held = x[only], y[only]
    task = task_from_arrays(x, y, *held, partition="natural", client_train=names, client_test=names[only])
    assert task.test.sizes.tolist() == [10, 5, 0]
    assert "no test examples for 1 of 3 clients (the first is 2)" in caplog.text
    with pytest.raises(
        ValueError, match="must give some client test examples, and gives none; provide client_test with"
    ):
        task_from_arrays(x, y, *held, partition="natural", client_train=names, client_test=names[only] + "s")


def test_caps_keep_a_subset_of_the_rows():
    whole = balanced(100, clients=10, partition="shards:2")
    task = balanced(100, clients=10, partition="shards:2", examples_per_client=7, test_per_client=3)
    assert (task.train.sizes == 7).all()
    assert (task.test.sizes == 3).all()
    for client in range(10):
        assert set(rows_of(task.train, client)) <= set(rows_of(whole.train, client))
        labels = set(task.labels[rows_of(task.train, client)])
        assert set(task.test_labels[rows_of(task.test, client)]) <= labels


def test_noise_grows_with_the_client_and_reaches_test_images():
    clean, noisy = (load_task("digits", clients=4, partition=text) for text in ("iid", "noise:0.2"))
    np.testing.assert_array_equal(clean.train.rows, noisy.train.rows)
    for index, before, after in (
        (clean.train, clean.inputs, noisy.inputs),
        (clean.test, clean.test_inputs, noisy.test_inputs),
    ):
        change = [
            np.abs(after[rows_of(index, i)].astype(int) - before[rows_of(index, i)]).mean() for i in range(4)
        ]
        assert change == sorted(change)
        assert change[0] > 0
    assert noisy.inputs.dtype == np.uint8


def test_rotation_turns_whole_clients():
    clean, turned = (load_task("digits", clients=5, partition=text) for text in ("iid", "iid+rotation"))
    for client in range(5):
        mine = rows_of(clean.train, client)
        for row in mine[:3]:
            np.testing.assert_array_equal(
                turned.inputs[row, :, :, 0], np.rot90(clean.inputs[row, :, :, 0], client % 4)
            )


def test_corruption_changes_the_training_data_of_chosen_clients_only():
    text = "iid+corrupt_pixels:0+corrupt_labels:1,2"
    clean, task = (load_task("digits", clients=5, partition=text) for text in ("iid", text))
    np.testing.assert_array_equal(clean.test_inputs, task.test_inputs)
    for client in range(5):
        mine = rows_of(clean.train, client)
        inputs, labels = task.inputs[mine], task.labels[mine]
        assert np.array_equal(inputs, clean.inputs[mine]) == (client != 0)
        assert np.array_equal(labels, clean.labels[mine]) == (client not in (1, 2))
        np.testing.assert_array_equal(np.sort(labels), np.sort(clean.labels[mine]))
        np.testing.assert_array_equal(
            np.sort(inputs.reshape(len(mine), -1)), np.sort(clean.inputs[mine].reshape(len(mine), -1))
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard:2", "did you mean 'shards:2'"),
        ("", "must name one of iid, shards"),
        ("shards", "form shards:N"),
        ("shards:0", "form shards:N"),
        ("shards:2:3", "form shards:N"),
        ("shards:1.5", "form shards:N"),
        ("dirichlet:nan", "form dirichlet:BETA"),
        ("dirichlet:inf", "form dirichlet:BETA"),
        ("dirichlet:-1", "form dirichlet:BETA"),
        ("dirichlet:1:0", "form dirichlet:BETA"),
        ("lotteryfl:2:1.5", "form lotteryfl:N:BALANCE"),
        ("iid:3", "must have the form iid, not 'iid:3'"),
        ("iid+shards:2", "must name one of noise, .* not 'shards'"),
        ("corrupt_labels:1,x", "form corrupt_labels"),
        ("corrupt_labels:-1", "form corrupt_labels"),
        ("noise:-1", "form noise:SIGMA"),
        ("noise:1e306", "form noise:SIGMA"),
        ("lotteryfl:2:0.25", "at most 35 clients"),
        ("shards:20", "at most 71 clients"),
        ("draw:0", "form draw:N"),
        ("draw:20:11", "at most 10 labels"),
        ("draw:10000000", "at most 100000000 examples"),
        ("natural", "must go with client ids"),
        ("shards:2+noise:0.1", "share no test examples"),
        ("iid+corrupt_labels:100", "must name clients from 0 to 99, not 100"),
    ],
)
def test_refusals_are_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_task("digits", partition=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_the_smallest_client_is_as_small_as_must_be_or_as_told(kind, caplog):
    def smallest(text, clients):
        tasks = [toy(text, clients=clients) for _ in range(2)]
        np.testing.assert_array_equal(tasks[0].train.rows, tasks[1].train.rows)
        assert sum(tasks[0].train.sizes) == 400
        return tasks[0].train.sizes.min()

    # A tenth of the mean where that is less than 10; the same draw when that is asked for.
    assert smallest(f"{kind}:0.5", 10) >= 4
    np.testing.assert_array_equal(toy(f"{kind}:0.5", 10).train.rows, toy(f"{kind}:0.5:4", 10).train.rows)
    assert not caplog.records
    assert smallest(f"{kind}:0.5:12", 10) >= 12
    with pytest.raises(
        ValueError, match=f"10 clients 40 .* no draw of 500 .*{kind}:0.5:MIN with a smaller MIN"
    ):
        toy(f"{kind}:0.5:40", 10)
    # No draw gives each of twenty clients a tenth of the mean: the best one is taken, and that is said.
    text = {"dirichlet": "dirichlet:0.06", "quantity": "quantity:0.3"}[kind]
    assert smallest(text, 20) == 1
    assert f"'{text}': no draw of 500 gave each of 20 clients 2 examples; the smallest has 1" in caplog.text


@pytest.mark.parametrize("text", ["dirichlet:1e-5", "quantity:1e-5"])
def test_hopeless_draws_end(text):
    with pytest.raises(ValueError, match="fewer clients or a larger beta"):
        toy(text, clients=50)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"clients": 0}, "clients=0: must be from 1 to 1438"),
        ({"clients": 5000}, "clients=5000: must be from 1 to 1438"),
        ({"clients": 2.5}, "an integer"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed="),
        ({"examples_per_client": 0}, "examples_per_client=0: must be at least 1"),
        ({"test_per_client": -3}, "test_per_client=-3: must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_task("digits", **kwargs)


@pytest.mark.parametrize("registry", [PARTITIONS, MODIFIERS])
def test_registries_describe_themselves(registry):
    for name, entry in registry.items():
        assert entry.usage.partition(":")[0] == name
        assert entry.help
        assert "\n" not in entry.help


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="iidshardsnoise:+,.0123456789-e ", max_size=24))
def test_any_text_parses_or_is_refused(text):
    with contextlib.suppress(ValueError):  # nothing else may be raised
        assert parse(text).text == text
