"""A user's own arrays: their scale, channels, labels and names; the model and cohort that suit them."""

import os

import numpy as np
import optax
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import fedjax_masks as fm
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import load_task, task_from_arrays
from fedjax_masks.data.files import count_clients, input_shape
from fedjax_masks.experiment.config import make_config

RNG = np.random.default_rng(0)
BYTES = RNG.integers(256, size=(40, 6, 5, 1), dtype=np.uint8)


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def inputs_of(x, **options):
    """The training and test inputs of a task whose last eight examples are for testing."""
    y = np.arange(len(x)) % 2
    task = task_from_arrays(x[:-8], y[:-8], x[-8:], y[-8:], clients=2, **options)
    return task.inputs, task.test_inputs


def labels_of(train, test, **options):
    x = RNG.random((len(train), 3)), RNG.random((len(test), 3))
    task = task_from_arrays(x[0], np.array(train), x[1], np.array(test), clients=1, scale="none", **options)
    return task.labels.tolist(), task.test_labels.tolist(), task.num_classes


# --- scale ---


@pytest.mark.parametrize(
    "x",
    [
        BYTES,
        BYTES // 2,
        np.repeat(BYTES.reshape(40, 30), 2, axis=1)
        * (np.arange(60) % 3 == 0),  # flattened, most pixels black
        np.float32(BYTES / 255),
        np.float32(RNG.uniform(-5, 5, BYTES.shape)),
        # Standardized, with outliers; one-hot; columns of which one is rare.
        np.float32(standardized(RNG.standard_normal((40, 7)) ** 3)),
        np.eye(40, dtype=np.float32),
        np.float32(RNG.random((40, 9)) * np.linspace(0.02, 1, 9)),
        # Flags that are rarely set, or rarely not.
        np.float32(np.stack([RNG.standard_normal(400), np.arange(400) == 3, np.arange(400) != 5], 1)),
        # Flattened images, of few examples.
        np.float32(np.concatenate([RNG.integers(256, size=(40, 60)) / 255, np.eye(40, 4) / 255], 1)),
        # Images with few bright pixels.
        np.float32(np.arange(40 * 30) % 150 == 0).reshape(40, 6, 5, 1),
    ],
)
def test_inputs_that_train_as_they_are_stay_to_the_bit(x, caplog):
    for found, given in zip(inputs_of(x), (x[:-8], x[-8:])):
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, given)
    assert not caplog.records


IMAGES = {
    "grey levels": RNG.integers(17, size=(40, 4, 4, 1)),
    "three bits": RNG.integers(8, size=(40, 4, 4, 3)).astype(np.uint8),
    "floats of bytes": np.float32(BYTES),
    "offset": 1000 + RNG.random((40, 4, 4, 1)),
    "twice divided": np.float32(BYTES / 255 / 255),
    "faint": np.float32(BYTES / 255 * 0.06),
    "bright": np.float32(1 + BYTES / 255 * 0.06),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_another_range_are_brought_to_one_and_that_is_said(kind, caplog):
    x = IMAGES[kind]
    low, high = np.float32(x[:-8]).min(), np.float32(x[:-8]).max()
    for found, given in zip(inputs_of(x), (x[:-8], x[-8:])):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 2 * (given - low) / (high - low) - 1, atol=1e-4)
    (record,) = caplog.records
    assert "'arrays': inputs from " in record.getMessage()
    assert "data.scale=minmax; none keeps them" in record.getMessage()


def test_floats_of_bytes_train_like_bytes():
    found, _ = inputs_of(np.float32(BYTES), scale="minmax")
    low, high = BYTES[:-8].min(), BYTES[:-8].max()
    assert (low, high) == (0, 255)
    np.testing.assert_allclose(found, BYTES[:-8] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 1 / 4254], ids=["as it is", "divided by the largest"])
def test_tables_of_uneven_columns_are_standardized(factor, caplog):
    x = load_breast_cancer().data[:100] * factor
    found, test = inputs_of(x)
    mean, deviation = x[:-8].mean(0), x[:-8].std(0)
    np.testing.assert_allclose(found, (x[:-8] - mean) / deviation, atol=1e-3)
    np.testing.assert_allclose(test, (x[-8:] - mean) / deviation, atol=1e-3)
    assert "data.scale=standardize" in caplog.text


def test_a_constant_column_says_nothing_and_becomes_nothing():
    x = np.stack([RNG.standard_normal(40), np.full(40, 1000.0)], 1)
    assert (inputs_of(x)[0][:, 1] == 0).all()
    still = np.stack([RNG.standard_normal(40), np.full(40, 1e-6)], 1).astype(np.float32)
    np.testing.assert_array_equal(inputs_of(still)[0], still[:-8])


def test_integers_of_a_table_are_numbers_and_flags_stay_what_they_are():
    flags = RNG.integers(2, size=(40, 6))
    np.testing.assert_array_equal(inputs_of(flags)[0], np.float32(flags[:-8]))
    ages = np.concatenate([flags, RNG.integers(18, 90, (40, 1))], 1)
    np.testing.assert_allclose(inputs_of(ages)[0].std(0), 1, rtol=1e-5)


UNLIKE = RNG.standard_normal((400, 3))
TABLES = {
    "census": np.stack([RNG.integers(*ends, 400) for ends in [(17, 91), (1, 100), (1, 17), (0, 2)]], 1),
    "census bytes": np.stack([RNG.integers(*ends, 400) for ends in [(17, 91), (200, 256), (0, 2)]], 1).astype(
        np.uint8
    ),
    "one of 3 is tiny": UNLIKE * [1, 1, 0.001],
    "one is offset": UNLIKE * [1, 1, 0.01] + np.array([0, 0, 2]),
    "all are tiny": UNLIKE * 0.01,
    "timestamps": RNG.uniform(0, 60, (400, 3)) + np.array([0, 0, 1.7e9]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_column_of_a_table_gets_its_share(kind, caplog):
    x = np.float64(TABLES[kind])
    found, test = inputs_of(TABLES[kind])
    mean, deviation = x[:-8].mean(0), x[:-8].std(0)
    np.testing.assert_allclose(found, (x[:-8] - mean) / deviation, atol=1e-4)
    np.testing.assert_allclose(test, (x[-8:] - mean) / deviation, atol=1e-4)
    assert found.dtype == np.float32
    assert "data.scale=standardize; none keeps them" in caplog.text


def test_bool_inputs_are_flags_and_masked_ones_are_refused():
    flags = RNG.integers(2, size=(40, 6)).astype(bool)
    for x in (flags, flags.reshape(40, 3, 2, 1)):
        found, _ = inputs_of(x)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, x[:-8])
    plain = RNG.standard_normal((40, 2))
    masked = np.ma.masked_array(plain, plain > 1)
    with pytest.raises(ValueError, match="x_train must be a plain array; it has masked values"):
        inputs_of(masked)
    found, _ = inputs_of(np.ma.masked_array(plain))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, np.float32(plain[:-8]))


@pytest.mark.parametrize("scale", ["auto", "none"])
def test_large_memory_mapped_floats_are_scaled_before_they_are_rounded(tmp_path, scale):
    x = 1.7e9 + RNG.uniform(0, 60, (40, 2))
    for key, array in {"x": x, "y": np.arange(40) % 2}.items():
        np.save(tmp_path / f"{key}.npy", array)
    task = load_task(f"npy:{tmp_path}", clients=2, scale=scale)
    assert task.inputs.dtype == np.float32
    if scale == "auto":
        np.testing.assert_allclose(task.inputs.std(0), 1, rtol=1e-5)
    else:
        assert np.isin(task.inputs, np.float32(x)).all()


@pytest.mark.parametrize("scale", ["none", "standardize", "minmax"])
def test_a_scale_that_is_asked_for_is_applied(scale):
    found, _ = inputs_of(BYTES, scale=scale)
    x = np.float64(BYTES[:-8])
    expected = {"none": x, "standardize": (x - x.mean()) / x.std(), "minmax": x / 127.5 - 1}[scale]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == (np.uint8 if scale == "none" else np.float32)


def test_a_scale_serves_embedded_data_too():
    task = load_task("digits", clients=2, scale="standardize")
    assert abs(task.inputs.mean()) < 1e-3
    np.testing.assert_allclose(task.inputs.std(), 1, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["integers", "floats", "table"])
def test_data_that_trained_at_chance_are_learnt(kind):
    x, y = load_digits(return_X_y=True)
    x = {"integers": x.astype(int), "floats": 255 / 16 * x, "table": x}[kind]
    x = x if kind == "table" else x.reshape(-1, 8, 8)
    task = task_from_arrays(x[:1400], y[:1400], x[1400:], y[1400:], clients=5)
    model = (fm.models.mlp if kind == "table" else fm.models.cnn)(task)
    run = fm.simulate(fm.fedavg(model, optax.sgd(0.05)), task, rounds=6, cohort=5, eval_every=6)
    assert run.records[-1]["global_accuracy"] > 0.85


# --- channels ---

FIRST = RNG.integers(256, size=(40, 3, 6, 5), dtype=np.uint8)


def test_channels_in_front_are_refused_or_moved():
    with pytest.raises(
        ValueError,
        match=r"x_train must .*; it is uint8 \[32, 3, 6, 5\] and looks channel-first; .*=first moves",
    ):
        inputs_of(FIRST)
    np.testing.assert_array_equal(inputs_of(FIRST, channels="first")[1], np.moveaxis(FIRST[-8:], 1, 3))
    np.testing.assert_array_equal(inputs_of(FIRST, channels="last")[1], FIRST[-8:])
    with pytest.raises(
        ValueError, match=r"must be \[num, channels, .* with data.channels=first; it is uint8 \[32, 3, 6\]"
    ):
        inputs_of(FIRST[..., 0], channels="first")


@pytest.mark.parametrize("number", [2, 5])
def test_squares_behind_any_number_of_channels_are_refused(number):
    x = RNG.random((40, number, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"looks channel-first; .*channels=first moves .*=last does not"):
        inputs_of(x)
    assert inputs_of(x, channels="first")[0].shape == (32, 8, 8, number)
    assert inputs_of(x, channels="last")[0].shape == (32, number, 8, 8)


# --- labels ---


def test_labels_from_one_become_classes_from_zero(caplog):
    assert labels_of([1, 2, 3, 1], [3, 1]) == ([0, 1, 2, 0], [2, 0], 3)
    assert "labels 1 to 3 are classes 0 to 2" in caplog.text
    # The number of classes tells where labels begin, though the third has no examples.
    assert labels_of([1, 2, 4, 1], [4, 1], classes=4) == ([0, 1, 3, 0], [3, 0], 4)


def test_labels_with_gaps_are_refused_with_their_remedies():
    with pytest.raises(
        ValueError, match=r"y_train must .* 3 different labels from 0 to 900; .*relabel.*classes=901"
    ):
        labels_of([0, 100, 900], [0])
    with pytest.raises(ValueError, match=r"y_train must .* 2 different labels from 1 to 2; .*classes=3"):
        labels_of([1, 2, 1], [0, 1])  # the first class has only test examples
    with pytest.raises(ValueError, match=r"must be 0 or more; it has label -1; data.relabel=true"):
        labels_of([0, 1], [-1])


def test_labels_are_numbered_anew_on_request(caplog):
    assert labels_of([900, 0, -100, 0], [0, 900], relabel=True) == ([2, 1, 0, 1], [1, 2], 3)
    assert "labels -100, 0, 900 are classes 0 to 2" in caplog.text
    with pytest.raises(ValueError, match="y_test must have the labels of y_train; it has label 7"):
        labels_of([900, 0], [7], relabel=True)
    with pytest.raises(ValueError, match=r"must have at most data.classes=2 different labels; it has 3"):
        labels_of([0, 5, 7], [7], relabel=True, classes=2)


def test_labels_of_every_type_are_numbered():
    strings = ["dog", "cat", "dog"]
    for train, test in [
        (strings, ["cat"]),
        (np.array(strings, object), ["cat"]),
        (np.array(strings, "S"), np.array(["cat"], "S")),
    ]:
        assert labels_of(train, test, relabel=True) == ([1, 0, 1], [0], 2)
        with pytest.raises(ValueError, match=r"y_train must .*data.relabel=true numbers strings"):
            labels_of(train, test)
    for relabel in (False, True):
        assert labels_of([True, False, True], [False], relabel=relabel) == ([1, 0, 1], [0], 2)
        assert labels_of([1.0, 0.0, 1.0], [0.0], relabel=relabel) == ([1, 0, 1], [0], 2)
        assert labels_of(np.array([1, 0, 1], object), [0], relabel=relabel) == ([1, 0, 1], [0], 2)
        for bad in ([0.5, 1.0], [np.nan, 1.0], np.array([1, "a"], object)):
            with pytest.raises(
                ValueError, match=r"y_train must be integers .*; it is (float64|object) \[2\]"
            ):
                labels_of(bad, [0], relabel=relabel)
    with pytest.raises(ValueError, match="y_test must be like y_train, <U3; it is int64"):
        labels_of(strings, [0], relabel=True)


def test_classes_without_examples_are_accepted_by_their_number(caplog):
    assert labels_of([0, 2, 2], [4], classes=6) == ([0, 2, 2], [4], 6)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"y_test must be from 0 to 3, by data.classes; it has label 4"):
        labels_of([0, 1, 2], [4], classes=4)


def test_options_of_own_arrays_are_refused_elsewhere():
    for option, message in [
        ({"channels": "first"}, "data.channels=first: must be left out"),
        ({"relabel": True}, "data.relabel=True: must be left out"),
        ({"classes": 12}, "data.classes=12: must be left out"),
        ({"scale": "log"}, "scale='log': must be one of auto, none, minmax, standardize"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_task("digits", **option)


# --- names in files ---


def save(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return f"npz:{folder}/mine.npz"


def test_client_ids_are_read_by_their_usual_names(tmp_path, caplog):
    x, y, owner = RNG.random((40, 3)), np.arange(40) % 2, np.arange(40) % 5
    for key in ("client", "client_ids", "Clients", "user_id", "users"):
        name = save(tmp_path, X=x, y=y, **{key: owner})
        assert load_task(name, partition="natural").num_clients == count_clients(name) == 5
    split = {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}
    for keys in (
        ("client_train", "client_test"),
        ("train_users", "test_users"),
        ("client_ids", "user_ids_test"),
    ):
        name = save(tmp_path, **split, **dict(zip(keys, (owner[:30], owner[30:]))))
        assert load_task(name, partition="natural").test.sizes.tolist() == [2] * 5
        assert count_clients(name) == 5
    assert not caplog.records
    with pytest.raises(ValueError, match="client must be one array; it is both 'client_id' and 'user'"):
        load_task(save(tmp_path, x=x, y=y, client_id=owner, user=owner))
    with pytest.raises(
        ValueError, match=r"client must be .* \[30\], one per example of x_train; it is int64 \[40\]"
    ):
        load_task(save(tmp_path, **split, client=owner), partition="natural")


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_that_are_not_read_are_named(tmp_path, kind, caplog):
    arrays = {"x": BYTES, "y": np.arange(40) % 2, "clint": np.arange(40), "weights": np.ones(40)}
    if kind == "npz":
        name = save(tmp_path, **arrays)
    else:
        for key, array in arrays.items():
            np.save(tmp_path / f"{key}.npy", array)
        name = f"npy:{tmp_path}"
    load_task(name, clients=2)
    (record,) = caplog.records
    assert "not read: clint, weights; did you mean 'client' by 'clint'?" in record.getMessage()
    with pytest.raises(ValueError, match=r"lacks x_train, y_train, x_test, y_test; it has images, target"):
        load_task(save(tmp_path, images=BYTES, target=np.arange(40)))


def test_client_ids_under_other_keys_get_a_hint(tmp_path, caplog):
    x, y = RNG.random((40, 3)), np.arange(40) % 2
    name = save(tmp_path, x=x, y=y, client_train=y)
    load_task(name, clients=2)
    assert "not read: client_train; did you mean 'client' by 'client_train'?" in caplog.text
    caplog.clear()
    load_task(save(tmp_path, x=x, y=y, client_train=y, client=y), partition="natural")
    assert caplog.messages == [f"data set '{name}': not read: client_train"]
    with pytest.raises(ValueError, match=r"must go with client ids, .* client, client_train .*user_id"):
        load_task(save(tmp_path, x=x, y=y, writer=y), partition="natural")
    with pytest.raises(
        ValueError, match=r"y must have two or more examples of some client, .* one example per client"
    ):
        load_task(save(tmp_path, x=x, y=y, client=np.arange(40)), partition="natural")
    owners = np.array([f"owner {number % 4}" for number in range(40)], object)
    task = task_from_arrays(x, y, x, y, client_train=owners, client_test=owners, partition="natural")
    assert task.train.sizes.tolist() == [10] * 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    os.symlink("/dev/zero", tmp_path / "zero.npz")
    np.save(tmp_path / "y.npy", np.arange(4))
    for name in (f"npz:{tmp_path}/x.npy", f"npz:{tmp_path}/zero.npz", f"npy:{tmp_path}"):
        with pytest.raises(
            ValueError, match="it is invalid: must be a regular file, not a pipe or a device"
        ) as caught:
            load_task(name)
        assert "\n" not in str(caught.value)
        assert input_shape(name) is None


# --- what suits them ---


def config_of(name, **values):
    return make_config({"algorithm.name": "fedavg", "data.name": name, **values})


@pytest.mark.parametrize(
    ("shape", "model"), [((28, 28), "cnn"), ((32, 32, 3), "cnn"), ((1, 1), "cnn"), ((64,), "mlp")]
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_the_default_model_suits_the_inputs(tmp_path, shape, model, kind):
    arrays = {"x": np.zeros((6, *shape), np.uint8), "y": np.arange(6) % 2}
    np.savez_compressed(tmp_path / "mine.npz", **arrays)
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
    name = f"npy:{tmp_path}" if kind == "npy" else f"npz:{tmp_path}/mine.npz"
    assert input_shape(name) == shape
    assert config_of(name).model.name == model
    assert config_of(name, **{"model.name": "lenet"}).model.name == "lenet"
    task = load_task(name, clients=2)
    fm.models.build_model(model, task)


def test_other_data_sets_of_images_get_a_convolutional_model():
    assert config_of("kmnist").model.name == config_of("food101").model.name == "cnn"


def test_the_default_cohort_is_ten_or_all(tmp_path):
    name = save(tmp_path, x=RNG.random((40, 3)), y=np.arange(40) % 2, client=np.arange(40) % 5)
    natural = {"data.partition": "natural"}
    assert config_of(name, **natural).cohort == 5
    assert config_of(name, **natural, cohort=3).cohort == 3
    assert config_of(name).cohort == 10
    many = save(tmp_path, x=RNG.random((40, 3)), y=np.arange(40) % 2, client=np.arange(40) % 20)
    assert config_of(many, **natural).cohort == 10
    with pytest.raises(UserError, match="cohort=6: must be from 1 to 5"):
        config_of("digits", cohort=6, **{"data.clients": 5})


@pytest.mark.slow
def test_a_client_of_a_single_example_takes_part_and_has_no_accuracy(tmp_path, caplog):
    owner = np.concatenate([np.repeat(np.arange(3), 10), [3]])
    name = save(tmp_path, x=RNG.random((31, 3)), y=np.arange(31) % 2, client=owner)
    task = load_task(name, partition="natural")
    assert task.train.sizes.tolist() == [8, 8, 8, 1]
    assert "no test examples for 1 of 4 clients (the first is 3)" in caplog.text
    for algorithm in (fm.fedavg, fm.local):
        run = fm.simulate(
            algorithm(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1)), task, rounds=1, cohort=4
        )
        accuracy = run.summary["client_accuracy"]
        assert accuracy[3] is None
        np.testing.assert_allclose(run.records[-1]["personal_accuracy_mean"], np.mean(accuracy[:3]))
