"""Pre-training on fractals, public data and files, and runs that start from it."""

from functools import cache, partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import fedjax_masks as fm
from fedjax_masks.cli import main
from fedjax_masks.core import trees
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import fractals as fractals_module
from fedjax_masks.data.coloring import paint
from fedjax_masks.data.fractals import draw_system, fractal_images
from fedjax_masks.experiment import build, config, pretraining
from fedjax_masks.experiment.pretraining import PretrainingConfig, pretrain, start_from
from fedjax_masks.models import parameters

SMALL = {"classes": 4, "per_class": 12, "epochs": 20}


def make_model(problem):
    return fm.models.cnn(problem).rebuild((4, 6, 8, problem.num_classes))


@pytest.fixture(scope="module")
def task():
    return fm.load_task("digits", clients=10, partition="shards:2", examples_per_client=60)


@pytest.fixture(scope="module")
def model(task):
    return make_model(task)


def test_every_map_of_a_system_contracts():
    systems = jax.jit(jax.vmap(draw_system))(jax.random.split(jax.random.key(0), 200))
    largest = np.linalg.svd(np.asarray(systems.matrix), compute_uv=False)[..., 0]
    assert largest.max() < 1
    maps = np.isfinite(systems.logits).sum(1)
    assert maps.min() >= 2
    assert len(np.unique(maps)) > 2


@cache
def fractals(seed):
    return fractal_images((16, 12, 3), classes=4, per_class=6, seed=seed, style="gray")


@pytest.mark.slow
def test_fractals_follow_from_the_seed_and_fill_the_image():
    (a, labels), (b, _), (c, _) = fractals(0), fractals.__wrapped__(0), fractals(1)
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.1
    assert a.shape == (24, 16, 12, 3)
    assert labels.tolist() == sorted([*range(4)] * 6)
    assert a.reshape(24, -1).max(1).min() == 255
    assert (a > 0).mean((1, 2, 3)).min() > 0.05


@pytest.mark.slow
def test_images_of_a_class_are_alike():
    images, labels = fractals(0)
    flat = images.reshape(len(labels), -1).astype(float)
    means = np.stack([flat[labels == c].mean(0) for c in range(4)])
    nearest = np.argmin(((flat[:, None] - means) ** 2).sum(-1), 1)
    assert (nearest == labels).mean() > 0.8


@pytest.fixture(scope="module")
def disks():
    """Two equal gray disks before empty corners, and a key for each."""
    distance = np.hypot(*np.mgrid[-6:6, -6:6] + 0.5)
    disk = np.where(distance < 5, 50 + 30 * distance, 0).astype(np.uint8)
    return jax.random.split(jax.random.key(0), 2), jnp.stack([disk, disk])


@pytest.mark.parametrize("channels", [2, 3])
def test_colors_are_random_and_leave_the_shape(disks, channels):
    keys, images = disks
    colors = np.asarray(paint(keys, images, channels=channels))
    np.testing.assert_array_equal(colors.any(-1), images > 0)
    assert (colors[0] != colors[1]).any(-1)[images[0] > 0].mean() > 0.9
    assert np.ptp(colors.astype(int), -1).max() > 20  # no gray
    np.testing.assert_array_equal(colors[:1], paint(keys[:1], images[:1], channels=channels))


def test_a_background_fills_empty_pixels_alone(disks):
    keys, images = disks
    plain, filled = (np.asarray(paint(keys, images, channels=3, background=b)) for b in (False, True))
    np.testing.assert_array_equal(filled[images > 0], plain[images > 0])
    assert filled.any(-1).all()
    assert len(np.unique(filled[images == 0], axis=0)) > 20


@pytest.mark.slow
def test_images_of_one_channel_are_gray_in_every_style(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    monkeypatch.setattr(fractals_module, "_choose_systems", lambda *_: jax.vmap(draw_system)(keys[:2]))
    gray, color, three = (
        fractal_images((8, 6, channels), classes=2, per_class=2, style=style)[0]
        for channels, style in ((1, "gray"), (1, "background"), (3, "gray"))
    )
    np.testing.assert_array_equal(gray, color)
    np.testing.assert_array_equal(np.repeat(gray, 3, -1), three)


def test_fractals_are_learned_and_cached(task, tmp_path, caplog):
    options = PretrainingConfig(source="fractal", **SMALL)
    make_model = partial(fm.models.mlp, hidden=(16,))
    found = pretrain(make_model, task, options, cache_dir=tmp_path)
    assert not caplog.records  # no warning of its schedule, which is meant for one round
    assert found.accuracy is not None
    assert found.accuracy > 2 / 4
    assert set(found.params) == {"dense1"}
    (entry,) = tmp_path.iterdir()
    stamp = entry.stat().st_mtime_ns
    again = pretrain(make_model, task, options, cache_dir=tmp_path)
    chex.assert_trees_all_equal(again, found)
    assert entry.stat().st_mtime_ns == stamp


def test_other_options_are_another_entry_of_the_cache(task, tmp_path, monkeypatch):
    names = SimpleNamespace
    run = names(evaluation=names(global_accuracy=0.0), state=names(server=names(params={})))
    images = np.zeros((6, *task.input_shape), np.uint8), np.zeros(6, np.int32)
    monkeypatch.setattr(pretraining, "fractal_images", lambda *args, **options: images)
    monkeypatch.setattr(pretraining, "simulate", lambda *args, **options: run)
    values = ({}, {"seed": 1}, {"seed": 1}, {"style": "gray"}, {"augment": "crop_flip"}, {"until": "conv1"})
    for value, entries in zip(values, (1, 2, 2, 3, 4, 4), strict=True):
        options = PretrainingConfig(source="fractal", **SMALL | value)
        pretrain(make_model, task, options, cache_dir=tmp_path)
        assert len(list(tmp_path.iterdir())) == entries


@pytest.mark.parametrize(("name", "augment"), [("none", None), ("crop_flip", fm.data.crop_flip)])
def test_minibatches_of_pretraining_are_augmented(task, tmp_path, monkeypatch, name, augment):
    trainers = []

    def stop(model, trainer):
        trainers.append(trainer)
        raise InterruptedError

    monkeypatch.setattr(pretraining, "fedavg", stop)
    with pytest.raises(InterruptedError):
        pretrain(make_model, task, PretrainingConfig(source="public", augment=name), cache_dir=tmp_path)
    assert trainers[0].augment is augment


def test_public_data_hold_no_example_of_a_client(task, monkeypatch, tmp_path):
    seen = []

    def train(make_model, problem, *_):
        seen.append(problem)
        return pretraining.Pretrained({}, 0.0)

    monkeypatch.setattr(pretraining, "_train", train)
    pretrain(make_model, task, PretrainingConfig(source="public"), cache_dir=tmp_path)
    (problem,) = seen
    rows = lambda images: {row.tobytes() for row in np.asarray(images)}
    theirs = rows(task.inputs[task.train.rows])
    assert len(problem.labels) + len(problem.test_labels) == len(task.labels) - len(task.train.rows)
    public = rows(problem.inputs) | rows(problem.test_inputs)
    doubles = rows(task.inputs[np.setdiff1d(np.arange(len(task.labels)), task.train.rows)]) & theirs
    assert public & theirs == doubles  # the data set itself may hold an image twice


def test_a_run_starts_from_given_parameters(task, model):
    given = jax.tree.map(lambda a: a + 1, model.init(jax.random.key(7)))
    part = {name: given[name] for name in ("conv1", "conv2")}
    started = start_from(model, part)
    params = started.init(jax.random.key(0))
    chex.assert_trees_all_equal({name: params[name] for name in part}, part)
    chex.assert_trees_all_equal(params["dense1"], model.init(jax.random.key(0))["dense1"])
    state = fm.ecofed(started, optax.sgd(0.1), split="conv2").init(jax.random.key(0), task)
    chex.assert_trees_all_equal(state.server.device, part)


def save_safetensors(path, params):
    save_file({name: np.asarray(leaf) for name, leaf in trees.flat(params).items()}, path)


def save_orbax(path, params):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, {"params": params})  # as flax writes it


@pytest.mark.parametrize(
    ("kind", "save"),
    [("npz", parameters.write_npz), ("safetensors", save_safetensors), ("orbax", save_orbax)],
)
def test_stages_are_taken_over_until_one(task, model, tmp_path, kind, save):
    file = tmp_path / f"given.{kind}"
    given = model.init(jax.random.key(3))
    save(file, given)
    source = f"{kind}:{file}"
    chex.assert_trees_all_equal(pretrain(make_model, task, PretrainingConfig(source=source)).params, given)
    first = pretrain(make_model, task, PretrainingConfig(source=source, until="conv1")).params
    chex.assert_trees_all_equal(first, {"conv1": given["conv1"]})


def test_lists_of_arrays_are_refused(tmp_path):
    save_orbax(tmp_path / "lists", {"conv1": [np.ones(2), np.ones(3)]})
    with pytest.raises(UserError, match=r"orbax:.*lists: must be a file of named arrays: it holds lists"):
        parameters.read(f"orbax:{tmp_path / 'lists'}")


def test_a_run_starts_from_a_file_that_pretrain_wrote(tmp_path, capsys):
    file = tmp_path / "first.npz"
    flags = ["--set", "pretraining.classes=4", "--set", "pretraining.per_class=12", "--epochs", "1"]
    small = ["--model", "mlp", "--set", "model.hidden=6,5", "--set", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main.main(["pretrain", *flags, *small, "--out", str(file)]) == 0
    assert capsys.readouterr().out.startswith("stages: dense1, dense2, accuracy on held-out images")
    values = {"algorithm.name": "ecofed", "model.name": "mlp", "model.hidden": "6,5"}
    values |= {
        "pretraining.source": f"npz:{file}",
        "pretraining.until": "dense1",
        "algorithm.split": "dense1",
    }
    algorithm, task = build.build(config.make_config(values))
    state = algorithm.init(jax.random.key(0), task)
    stored = parameters.read(f"npz:{file}")
    device = jax.device_get(state.server.device)
    chex.assert_trees_all_equal(device, {"dense1": stored["dense1"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "imagenet"}, r"source='imagenet': must be one of fractal, npz:FILE"),
        (
            {"source": "fractal", "until": "conv9"},
            r"until='conv9': must be one of conv1",
        ),
        (
            {"source": "npz:nowhere.npz"},
            r"source=npz:nowhere.npz: must be a file of named arrays: ",
        ),
    ],
)
def test_unknown_sources_are_refused(task, options, message):
    with pytest.raises(UserError, match=message):
        pretrain(make_model, task, PretrainingConfig(**options))


def test_public_data_are_refused_where_clients_have_all_examples():
    task = fm.load_task("digits", clients=10)
    with pytest.raises(UserError, match=r"all belong to clients; data.examples_per_client"):
        pretrain(make_model, task, PretrainingConfig(source="public"))


def test_fractals_are_refused_for_inputs_that_are_no_images():
    task = SimpleNamespace(input_shape=(6,), num_classes=3)
    with pytest.raises(UserError, match=r"must go with images"):
        pretrain(fm.models.mlp, task, PretrainingConfig(source="fractal"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {"conv1": p["conv1"] | {"kernel": jnp.zeros((5, 5, 1, 4))}},
            r"conv1.kernel has shape \(5,",
        ),
        (lambda p: {"conv7": p["conv1"]}, r"conv7.* no such parameter"),
        (lambda p: {"conv1": {"kernel": p["conv1"]["kernel"]}}, r"conv1.bias is missing"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(model, change, message):
    with pytest.raises(UserError, match=message):
        start_from(model, change(model.init(jax.random.key(0))))


@pytest.mark.parametrize("kind", parameters.FORMATS)
@pytest.mark.parametrize("content", [b"PK\x03\x04 and no more", b"\xff" * 100, b""])
def test_files_without_named_arrays_are_refused(task, tmp_path, kind, content):
    file = tmp_path / "broken"
    file.write_bytes(content)
    with pytest.raises(UserError, match="must be a file of named arrays: "):
        pretrain(make_model, task, PretrainingConfig(source=f"{kind}:{file}"))


def test_a_file_that_is_no_archive_is_not_called_a_pickle(tmp_path):
    (tmp_path / "table.npz").write_text("device,flops\nx,1\n")
    with pytest.raises(UserError, match=r"table.npz: must be a file of named arrays: it is no .npz file"):
        parameters.read(f"npz:{tmp_path / 'table.npz'}")


def test_names_of_both_a_stage_and_an_array_are_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", **{"conv1": np.zeros(2), "conv1.kernel": np.zeros(2)})
    with pytest.raises(UserError, match="must be a file of named arrays: "):
        parameters.read(f"npz:{tmp_path / 'odd.npz'}")
