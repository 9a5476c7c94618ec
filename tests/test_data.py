"""Sources, the cache, users' files, augmentation."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_masks.claims.divisions import CLASSES, DIVISION
from fedjax_masks.data import crop_flip, label_histogram, load_task, rows_of, synthetic_task, task_from_arrays
from fedjax_masks.data.cache import is_intact, load_or_build

REAL = Path(os.environ.get("FEDJAX_MASKS_DATA") or Path(__file__).parents[2] / "shared/data/tfds")


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(256, size=(40, 6, 6, 1), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(256, size=(12, 6, 6, 1), dtype=np.uint8),
        "y_test": np.arange(12) % 4,
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def write_npz(folder, **changes):
    path = folder / "mine.npz"
    np.savez(path, **arrays(**changes))
    return f"npz:{path}"


# --- digits ---


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    task = load_task("digits", clients=10)
    assert (task.inputs.dtype, task.input_shape, task.num_classes) == (np.uint8, (8, 8, 1), 10)
    both = np.concatenate([task.inputs, task.test_inputs]).reshape(-1, 64)
    grey = np.rint(both / 255 * 16)
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([grey, np.concatenate([task.labels, task.test_labels])[:, None]], axis=1)
    expected = np.concatenate([images, labels[:, None]], axis=1)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    # Stratified: a fifth of each class, give or take one example.
    np.testing.assert_array_less(np.abs(np.bincount(task.test_labels) - np.bincount(labels) / 5), 1)


def test_the_test_set_does_not_depend_on_the_partition_seed():
    one, two = (load_task("digits", clients=10, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.test_inputs, two.test_inputs)


# --- npz and npy ---


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_own_arrays_round_trip(tmp_path, kind):
    expected = arrays()
    if kind == "npz":
        name = write_npz(tmp_path)
    else:
        for key, value in expected.items():
            np.save(tmp_path / f"{key}.npy", value)
        name = f"npy:{tmp_path}"
    task = load_task(name, clients=4)
    np.testing.assert_array_equal(task.inputs, expected["x_train"])
    np.testing.assert_array_equal(task.test_labels, expected["y_test"])
    assert task.labels.dtype == np.int32
    assert task.num_classes == 4
    assert isinstance(task.inputs, np.memmap) == (kind == "npy")


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((7,), np.float64, ((7,), np.float32)),
        ((6, 5), np.uint8, ((6, 5, 1), np.uint8)),
        ((6, 5, 3), np.int64, ((6, 5, 3), np.uint8)),
        ((6, 5, 3), np.float16, ((6, 5, 3), np.float32)),
    ],
)
def test_inputs_are_normalised(shape, dtype, expected):
    x, y = np.ones((20, *shape), dtype), np.arange(20) % 2
    task = task_from_arrays(x, y, x, y, clients=2)
    assert (task.input_shape, task.inputs.dtype) == expected


def test_whole_arrays_are_split_within_clients(tmp_path):
    path = tmp_path / "mine.npz"
    x, owner = np.arange(60, dtype=np.float32)[:, None], np.repeat([7, 3, 5], [10, 20, 30])
    np.savez(path, x=x, y=np.arange(60) % 3, client=owner)
    task = load_task(f"npz:{path}", partition="natural", scale="none")
    assert task.train.sizes.tolist() == [16, 24, 8]
    assert task.test.sizes.tolist() == [4, 6, 2]
    seen = np.concatenate([task.inputs, task.test_inputs])[:, 0]
    np.testing.assert_array_equal(np.sort(seen), x[:, 0])
    for client, name in enumerate([3, 5, 7]):
        assert set(owner[task.test_inputs[rows_of(task.test, client), 0].astype(int)]) == {name}


NAN = np.where(np.arange(40)[:, None] == 39, np.nan, np.zeros((40, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "must have x_train, y_train, x_test and y_test, or x and y, and lacks y_test"),
        ({"x_train": np.zeros(40)}, r"x_train must be \[num, features\].*; it is float64 \[40\]"),
        ({"x_train": np.zeros((40, 1, 1, 1, 1))}, "x_train must .*; it is float64"),
        ({"x_train": np.zeros((0, 6, 6, 1))}, "x_train must .*; it is float64"),
        ({"x_train": np.zeros((40, 2), complex)}, "x_train must .*; it is complex128"),
        ({"x_train": np.zeros((40, 2), "U3")}, "x_train must .*; it is <U3"),
        ({"x_train": np.full((40, 2), 256)}, "x_train must be integers from 0 to 255, or .* from 256 to 256"),
        ({"x_train": np.full((40, 2), -1)}, "x_train must .*; it has integers from -1"),
        ({"x_train": NAN}, "x_train must be finite; it has values that are NaN or infinite"),
        ({"x_train": np.full((40, 2), 1e300)}, "x_train must .* values that are NaN or infinite"),
        ({"x_train": np.array([{}] * 40)}, "x_train must be a plain array; it holds pickled Python objects"),
        (
            {"y_train": np.zeros(39, int)},
            "y_train must have one label per example of x_train; it has 39 labels for 40",
        ),
        ({"y_train": np.zeros((40, 1), int)}, r"y_train must be integers \[num\]; it is int64 \[40, 1\]"),
        ({"y_train": np.full(40, 0.5)}, "y_train must .*; it is float64"),
        ({"y_train": np.arange(40) - 1}, "y_train must be 0 or more; it has label -1"),
        ({"y_train": np.full(40, 2**40)}, "y_train must .*; it has 1 different labels from 1099511627776"),
        ({"y_train": np.full(40, 40)}, "y_train must be 0 to .*; it has 1 different labels from 40 to 40"),
        ({"y_test": np.full(12, 4)}, "y_test must be from 0 to 3, the labels of y_train; it has label 4"),
        (
            {"x_test": np.zeros((12, 6, 5, 1), np.uint8)},
            "x_test must be like x_train.*; it has uint8 examples of .6, 5, 1.",
        ),
        ({"x_test": np.zeros((12, 6, 6, 1))}, "x_test must be like x_train.*; it has float64 examples"),
        (
            {"client_train": np.zeros(3, int)},
            r"client_train must be integers or strings \[40\].*; it is int64 \[3\]",
        ),
        ({"client_train": np.zeros(40)}, "client_train must .*; it is float64"),
    ],
)
def test_bad_arrays_are_refused_by_key(tmp_path, changes, message):
    name = write_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_task(name, clients=2)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not an archive")
    for name, message in [
        (f"npz:{tmp_path}/none.npz", "does not exist"),
        (f"npz:{tmp_path}", "unreadable"),
        (f"npz:{tmp_path}/one.npy", "a single array"),
        (f"npz:{tmp_path}/text.npz", "no array file|unreadable"),
        (f"npy:{tmp_path}/none", "no such folder"),
        (f"npy:{tmp_path}", "lacks x_train, y_train, x_test, y_test"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_task(name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_archives_load_or_are_refused(tmp_path_factory, data):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())
    content = bytearray(buffer.getvalue())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ValueError):  # anything else is a failure, and so is a warning
        load_task(f"npz:{path}", clients=2)


# --- the cache ---


def test_cache_builds_once_and_rebuilds_what_is_damaged(tmp_path):
    calls = []

    def build():
        calls.append(1)
        return {"values": np.arange(1000), "count": np.asarray(7)}

    for _ in range(2):
        found = load_or_build("entry", build, cache_dir=tmp_path)
        np.testing.assert_array_equal(found["values"], np.arange(1000))
        assert isinstance(found["values"], np.memmap)
        assert int(found["count"]) == 7
    assert len(calls) == 1

    path = tmp_path / "entry" / "values.npy"
    damages = [
        lambda: path.write_bytes(path.read_bytes()[:-8]),
        lambda: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        path.unlink,
        lambda: (tmp_path / "entry" / "manifest.json").write_text("{"),
        lambda: (tmp_path / "entry" / "manifest.json").write_text("[1]"),
    ]
    for number, damage in enumerate(damages, start=2):
        damage()
        assert not is_intact(tmp_path / "entry")
        np.testing.assert_array_equal(
            load_or_build("entry", build, cache_dir=tmp_path)["values"], np.arange(1000)
        )
        assert len(calls) == number
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def build():
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        load_or_build("entry", build, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_racing_builders_agree(tmp_path):
    barrier = threading.Barrier(4)
    results = []

    def build():
        barrier.wait()
        return {"values": np.arange(100)}

    def work():
        results.append(load_or_build("entry", build, cache_dir=tmp_path)["values"].sum())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [4950] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


KILLED = """
import os, pathlib, signal, sys
import numpy as np
from fedjax_masks.data import cache

def save(path, array, **options):
    pathlib.Path(path).write_bytes(bytes(1000))
    print("writes", flush=True)
    sys.stdin.read()

np.save = save
cache.load_or_build("other", lambda: {"values": np.arange(3)}, cache_dir=sys.argv[1])
"""


def test_leftovers_of_killed_processes_are_removed_but_not_those_of_living_ones(tmp_path):
    def names():
        return sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())

    def entry(name):
        load_or_build(name, lambda: {"values": np.arange(3)}, cache_dir=tmp_path)

    (tmp_path / ".old-killed").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], **pipes) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writes\n"
        assert names() == [".new"]
        (tmp_path / ".old-killed").mkdir()
        entry("first")
        assert names() == [".new", ".old", "first"]
        writer.kill()
    entry("second")
    assert names() == ["first", "second"]


def test_an_entry_that_cannot_be_read_is_not_built_again(tmp_path, monkeypatch):
    """As where a network file system answers with EIO: what is there may have taken hours."""
    load_or_build("entry", lambda: {"a": np.arange(3)}, cache_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read = Path.read_text

    def failing(path, *args, **options):
        if path.name == "manifest.json":
            raise OSError(5, "Input/output error")
        return read(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", failing)
        with pytest.raises(ValueError, match=r"must be readable; entry: Input/output error"):
            load_or_build("entry", pytest.fail, cache_dir=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_useless_cache_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache_dir=.*: must be a writable folder"):
        load_or_build("entry", lambda: {"values": np.arange(3)}, cache_dir=tmp_path / "file")


# --- tensorflow-datasets ---


def prepare(root, *, images, version="1.0.0"):
    """Writes a small prepared data set, as tensorflow-datasets lays it out."""
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "tiny" / version
    folder.mkdir(parents=True)
    prefix = "tensorflow_datasets.core.features."
    features = {
        "image": {
            "pythonClassName": f"{prefix}image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
        },
        "label": {
            "pythonClassName": f"{prefix}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "3"},
        },
    }
    tree = {
        "pythonClassName": f"{prefix}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(tree))
    splits = []
    for split, pixels in images.items():
        writer = ArrayRecordWriter(str(folder / f"tiny-{split}.array_record-00000-of-00001"), "group_size:1")
        for i, image in enumerate(pixels):
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="png")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(i % 3)
            writer.write(example.SerializeToString())
        writer.close()
        splits.append({"name": split, "shardLengths": [str(len(pixels))], "numBytes": "1"})
        splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "tiny", "version": version, "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def random_images(num, height=5):
    return np.random.default_rng(num).integers(256, size=(num, height, 4, 3), dtype=np.uint8)


def test_prepared_data_are_decoded_once(tmp_path, monkeypatch):
    images = {"train": random_images(30), "test": random_images(12)}
    prepare(tmp_path / "data", images=images)
    load = {"clients": 3, "data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}
    task = load_task("tiny", **load)
    np.testing.assert_array_equal(task.inputs, images["train"])
    np.testing.assert_array_equal(task.test_inputs, images["test"])
    np.testing.assert_array_equal(task.labels, np.arange(30) % 3)
    assert task.num_classes == 3
    monkeypatch.setattr("fedjax_masks.data.prepared._decode", None)  # a second decoding would fail
    np.testing.assert_array_equal(load_task("tiny", **load).inputs, images["train"])


def test_the_newest_version_is_read(tmp_path):
    for version, num in (("2.0.0", 9), ("10.0.0", 12)):
        prepare(tmp_path, images={"train": random_images(num), "test": random_images(6)}, version=version)
    task = load_task("tiny", clients=2, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert len(task.inputs) == 12


def test_without_a_test_split_a_fifth_is_held_out(tmp_path):
    prepare(tmp_path, images={"train": random_images(30)})
    task = load_task("tiny", clients=2, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert np.bincount(task.test_labels).tolist() == [2, 2, 2]


def test_unusable_prepared_data_are_refused(tmp_path):
    load = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    prepare(tmp_path, images={"train": [*random_images(3), *random_images(3, height=7)]})
    with pytest.raises(ValueError, match="'tiny': must have images of one size"):
        load_task("tiny", **load)
    record = next(tmp_path.glob("tiny/*/*.array_record*"))
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"'tiny': must be readable in ") as caught:
        load_task("tiny", **load)
    assert "\n" not in str(caught.value)


def test_missing_data_sets_are_named_and_never_downloaded(tmp_path, monkeypatch):
    prepare(tmp_path, images={"train": random_images(6)})
    monkeypatch.setattr("fedjax_masks.data.prepared._prepare", None)  # a download would fail
    for name in ("mnist", "../tiny", "", "/etc"):
        with pytest.raises(
            ValueError, match=f"data.name='{name}': must be prepared in data_dir=.*prepared in it: tiny"
        ):
            load_task(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        load_task("tiney", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"data_dir=.*: must be a folder"):
        load_task("mnist", data_dir=tmp_path / "none")
    (tmp_path / "above").mkdir()
    (tmp_path / "tiny").rename(tmp_path / "above" / "tiny")
    with pytest.raises(ValueError, match=f"did you mean data_dir='{tmp_path / 'above'}'"):
        load_task("tiny", data_dir=tmp_path)


def test_unknown_names_are_answered_with_near_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"'fashon_mnist': must be one of digits, .*; did you mean 'fashion_mnist'"
    ):
        load_task("fashon_mnist")


def test_a_failing_download_is_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(
        ValueError, match=r"'mnist': must be downloaded first, .*ConnectionError: no route to host"
    ):
        load_task("mnist")


def test_without_array_record_only_prepared_data_are_missing(tmp_path, monkeypatch):
    prepare(tmp_path, images={"train": random_images(6)})
    load = {"clients": 2, "data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(
        ValueError, match=r"'tiny': must go with array_record: .*digits, npz:PATH and npy:DIR do without"
    ):
        load_task("tiny", **load)
    assert load_task("digits", clients=2).num_clients == 2
    assert load_task(write_npz(tmp_path), clients=2).num_clients == 2
    monkeypatch.undo()
    load_task("tiny", **load)
    monkeypatch.setitem(sys.modules, "array_record", None)
    assert load_task("tiny", **load).num_clients == 2  # from the cache


@pytest.mark.realdata
@pytest.mark.slow
def test_cifar10_dirichlet_on_real_data():
    if not (REAL / "cifar10").is_dir():
        pytest.skip(f"no prepared cifar10 in {REAL}; set $FEDJAX_MASKS_DATA")
    task = load_task("cifar10", clients=10, partition="dirichlet:0.1", seed=2020, data_dir=REAL)
    assert tuple(task.train.sizes) == DIVISION
    assert tuple(label_histogram(task)[5]) == CLASSES[5]
    assert np.bincount(task.test_labels).tolist() == [1000] * 10
    # Published mean intensities of the training images.
    mean = np.asarray(task.inputs[::10], np.float64).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.01)


# --- synthetic data and augmentation ---


def test_synthetic_data_can_be_learnt():
    task = synthetic_task((6, 6, 1), 5, [30, 1, 200], noise=1.0)
    assert task.train.sizes.tolist() == [30, 1, 200]
    assert task.test.sizes.tolist() == [10, 10, 10]
    means = np.stack([task.inputs[task.labels == label].mean(0).ravel() for label in range(5)])
    distances = ((task.test_inputs.reshape(30, 1, -1) - means) ** 2).sum(-1)
    assert (distances.argmin(1) == task.test_labels).mean() > 0.9
    with pytest.raises(ValueError, match="sizes="):
        synthetic_task((2,), 2, [3, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_flip_is_a_crop_of_the_reflected_image(dtype):
    pad, x = 2, np.random.default_rng(0).integers(256, size=(64, 6, 7, 3)).astype(dtype)
    y = np.asarray(jax.jit(crop_flip, static_argnames="pad")(jax.random.key(0), x, pad=pad))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    seen = set()
    for before, after in zip(padded, y):
        places = [
            (top, left, flip)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for flip in (False, True)
            if np.array_equal(before[top : top + 6, left : left + 7][:, :: -1 if flip else 1], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    # 64 draws over 50 places: each axis and both flips occur, examples differ.
    assert [len({place[axis] for place in seen}) for axis in range(3)] == [5, 5, 2]
