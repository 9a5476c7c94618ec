import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_masks.algorithms import building, registry
from fedjax_masks.cli.flags import RUN_FLAGS
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Bounds, Count, Rate, coerce, is_plain
from fedjax_masks.core.trees import flat
from fedjax_masks.costs.devices import read_trace
from fedjax_masks.experiment.config import as_dict, keys, make_config, read_file
from fedjax_masks.models import MODELS, parameters

ALGORITHMS = sorted(registry.REGISTRY)


def config_of(algorithm="fedavg", **values):
    return make_config({"algorithm.name": algorithm, **values})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_plain_parameter_of_the_factories_is_a_key(algorithm, model):
    known = keys(algorithm, model)
    shared = {"epochs": "training.epochs", "batch_size": "training.batch_size"}
    for name, parameter in inspect.signature(
        registry.get(algorithm).factory, eval_str=True
    ).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and is_plain(parameter.annotation):
            assert shared.get(name, f"algorithm.{name}") in known
    for name, parameter in inspect.signature(MODELS[model], eval_str=True).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert known[f"model.{name}"].default == parameter.default


def test_every_flag_is_a_key():
    assert {flag.key for flag in RUN_FLAGS.values()} <= set(keys("fedavg", "mlp"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_configuration_survives_json(algorithm):
    config = config_of(algorithm, **{"model.name": "mlp", "model.hidden": "8,4", "rounds": "7"})
    again = make_config(flat(json.loads(json.dumps(as_dict(config)))))
    assert again == config
    assert config.model.options["hidden"] == (8, 4)


def test_epochs_optimiser_and_model_default_by_algorithm_and_data():
    fedmask, fedavg = config_of("fedmask"), config_of("fedavg", **{"data.name": "cifar10"})
    assert (fedmask.training.epochs, fedavg.training.epochs) == (5, 1)
    assert fedmask.algorithm.options["score_optimizer"] == "sgd"
    assert fedavg.algorithm.options["optimizer"] == "sgd"
    assert (fedmask.model.name, fedavg.model.name) == ("cnn", "cifar-cnn")


def test_cohort_and_evaluation_follow_what_is_given():
    config = config_of(**{"data.clients": 4, "rounds": 100})
    assert (config.cohort, config.eval_every) == (4, 5)


WRONG = [
    ({"algorithm.name": "fedmsk"}, ["fedmsk", "'fedmask'"]),
    ({"model.name": "lenett"}, ["lenett", "'lenet'"]),
    ({"algorithm.lrr": 0.1}, ["algorithm.lrr", "algorithm.lr"]),
    ({"algorithm.score_lr": 0.1}, ["algorithm.score_lr", "unknown key"]),
    ({"data": "digits"}, ["data", "unknown key"]),
    ({"rounds": -1}, ["rounds=-1", "at least 1"]),
    ({"rounds": 0}, ["rounds=0", "at least 1"]),
    ({"rounds": "many"}, ["rounds=many", "an integer at least 1"]),
    ({"rounds": 2.5}, ["rounds=2.5", "an integer"]),
    ({"rounds": True}, ["rounds=True", "an integer"]),
    ({"algorithm.lr": "nan"}, ["algorithm.lr=nan", "a finite number above 0"]),
    ({"algorithm.lr": float("inf")}, ["algorithm.lr=inf", "a finite number"]),
    ({"algorithm.lr": 0}, ["algorithm.lr=0", "above 0"]),
    ({"algorithm.momentum": 1.0}, ["algorithm.momentum=1.0", "below 1"]),
    ({"algorithm.optimizer": "adams"}, ["algorithm.optimizer=adams", "adamw"]),
    ({"cohort": 11, "data.clients": 10}, ["cohort=11", "1 to 10"]),
    ({"seed": -1}, ["seed=-1", "at least 0"]),
    ({"checkpoint_share": 1.5}, ["checkpoint_share=1.5", "at most 1"]),
    ({"server_optimizer.lr": 0.1}, ["server_optimizer.lr", "server_optimizer.name"]),
    ({"algorithm.name": "local", "server_optimizer.name": "adam"}, ["server_optimizer.name", "fedavg"]),
    (
        {"algorithm.name": "fedmask", "algorithm.forward": "medium"},
        ["forward=medium", "hard, soft"],
    ),
    ({"algorithm.name": "fedmask", "algorithm.keep_scores": "yes"}, ["keep_scores=yes", "true or false"]),
    ({"algorithm.lr": 10**400}, ["algorithm.lr=1000", "a finite number"]),
    ({"model.name": "mlp", "model.hidden": "8,0"}, ["model.hidden=8,0", "integers at least 1"]),
    ({"model.name": "mlp", "model.hidden": 2**63}, ["model.hidden=", "at most 2147483647"]),
    ({"model.name": "mlp", "model.hidden": "8,x"}, ["model.hidden=8,x", "a list of integers"]),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_named_with_what_is_accepted(values, words):
    with pytest.raises(UserError) as error:
        make_config({"algorithm.name": "fedavg", **values})
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_algorithm_is_required():
    with pytest.raises(UserError, match=r"algorithm\.name: must be given, as one of adp"):
        make_config({"rounds": 3})


@pytest.mark.parametrize("key", ["algorithm", "algoritm.name", "algorithms.name"])
def test_a_misspelt_algorithm_is_found(key):
    with pytest.raises(UserError, match=rf"algorithm\.name: must be given, .*; did you mean it by '{key}'\?"):
        make_config({"rounds": 3, key: "fedavg"})


@pytest.mark.parametrize(
    ("text", "typed", "annotation"),
    [
        ("3", 3, Count),
        ("1e-3", 1e-3, Rate),
        ("2", 2.0, float),
        ("true", True, bool),
        ("none", None, int | None),
        ("5", 5, Count | None),
        ("group", "group", Literal["batch", "group"] | None),
        ("3", "3", str | None),
        ("8, 4", (8, 4), Sequence[int]),
        ("[8]", (8,), Sequence[int]),
    ],
)
def test_text_and_typed_values_agree(text, typed, annotation):
    for value in (text, typed):
        found = coerce("key", value, annotation)
        assert found == typed
        assert type(found) is type(typed)


def test_bounds_hold_at_their_ends():
    closed, opened = Bounds(0, 1), Bounds(0, 1, above=True, below=True)
    assert [x in closed for x in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [x in opened for x in (0, 0.5, 1)] == [False, True, False]


def test_a_file_is_read_flat_and_typed(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'rounds = 3\n[algorithm]\nname = "fedmask"\nscore_lr = 0.5\n[model]\nname="mlp"\nhidden = [4]\n'
    )
    config = make_config(read_file(path))
    assert (config.rounds, config.algorithm.options["score_lr"]) == (3, 0.5)
    assert config.model.options["hidden"] == (4,)


@pytest.mark.parametrize("text", [None, "rounds = = 3", "rounds = 1\nrounds = 2"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, text):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"config=.*run\.toml"):
        read_file(path)


READERS = {
    "config": read_file,
    "trace": lambda path: read_trace(str(path), 2),
    "npz": lambda path: parameters.read(f"npz:{path}"),
    "safetensors": lambda path: parameters.read(f"safetensors:{path}"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("reader", READERS)
def test_files_that_never_end_are_refused(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="must be a regular file, not a pipe or a device") as caught:
            READERS[reader](path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sgd_follows_its_equations():
    optimizer = building.make_optimizer("sgd", 0.1, momentum=0.9, weight_decay=0.01)
    params = jnp.asarray([1.0, -2.0])
    state, expected, velocity = optimizer.init(params), np.array([1.0, -2.0]), np.zeros(2)
    for step in range(3):
        grads = jnp.asarray([0.5, 1.0]) * (step + 1)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + np.asarray(grads) + 0.01 * expected
        expected = expected - 0.1 * velocity
    np.testing.assert_allclose(params, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "yogi", "adagrad", "rmsprop"])
def test_every_optimiser_descends(name):
    optimizer = building.make_optimizer(name, 0.05, weight_decay=1e-3)
    params = jnp.asarray([1.0, -2.0])
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(jax.grad(lambda w: jnp.sum(w**2))(params), state, params)
        params = jnp.asarray(optax.apply_updates(params, updates))
    assert float(jnp.sum(params**2)) < 4.9


def test_momentum_is_refused_where_there_is_none():
    with pytest.raises(UserError, match=r"momentum=0.9: must go with sgd or rmsprop"):
        building.make_optimizer("adam", 0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"robust.trim": 0.5}, ["robust.trim=0.5", "below 0.5"]),
        ({"robust.trim": 0.1}, ["robust.trim=0.1", "robust.merge=trimmed_mean"]),
        ({"robust.merge": "krum"}, ["robust.merge=krum", "median"]),
        ({"attack.kind": "zeros"}, ["attack.kind=zeros", "nan, scale, sign"]),
        ({"privacy.multiplier": 1.0}, ["privacy.multiplier=1.0", "privacy.norm"]),
        ({"privacy.norm": 1.0, "wire.up": "top_k:0.1"}, ["wire.up=top_k:0.1", "privacy.norm"]),
        ({"privacy.norm": 1.0, "robust.merge": "median"}, ["robust.merge=median", "single uploads"]),
        ({"privacy.norm": 1.0, "robust.clip": 1.0}, ["robust.clip=1.0", "single uploads"]),
        ({"privacy.norm": 1.0, "attack.kind": "nan"}, ["attack.kind=nan", "privacy.norm"]),
    ],
    ids=str,
)
def test_defences_and_privacy_that_do_not_hold_are_refused(values, words):
    with pytest.raises(UserError) as error:
        config_of(**values)
    assert all(word in str(error.value) for word in words), error.value


def test_defences_and_privacy_have_defaults_once_they_are_asked_for():
    config = config_of(**{"robust.merge": "trimmed_mean"})
    assert (config.robust.trim, config.attack.kind, config.privacy.norm) == (0.2, None, None)
    assert config_of(**{"privacy.norm": "2"}).privacy.multiplier == 1.0
