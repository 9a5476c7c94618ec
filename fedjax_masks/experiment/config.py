"""The configuration of one experiment: typed, complete, checked before anything expensive.

Every choice has exactly one dotted key (``rounds``, ``data.partition``, ``algorithm.score_lr``).
The keys of ``algorithm`` and ``model`` are the keyword-only parameters of their factories; all other keys
are the attributes of :mod:`fedjax_masks.experiment.sections`. Command line, file and Python give flat
mappings from keys to values; of several mappings, the later one wins: first the file, then the flags,
then ``--set``.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedjax_masks.algorithms import registry
from fedjax_masks.core.errors import UserError, regular_file
from fedjax_masks.core.nested import flat
from fedjax_masks.core.options import Count, Seed, Share, coerce, describe, is_plain
from fedjax_masks.core.signatures import REQUIRED, Option
from fedjax_masks.core.synonyms import nearest_key, nearest_name, synonym
from fedjax_masks.data import files
from fedjax_masks.data.sources import is_user_data
from fedjax_masks.experiment.rules import check_values, fill_defaults
from fedjax_masks.experiment.sections import (
    SECTIONS,
    AttackConfig,
    DataConfig,
    Part,
    PretrainingConfig,
    PrivacyConfig,
    RobustConfig,
    ServerOptimizerConfig,
    StorageConfig,
    TrainingConfig,
    WireConfig,
)
from fedjax_masks.models.registry import MODELS, model_signature

_MODEL_OF = {
    "digits": "cnn",
    "mnist": "lenet",
    "fashion_mnist": "lenet",
    "emnist": "femnist-cnn",
    "cifar10": "cifar-cnn",
    "cifar100": "cifar-cnn",
    "svhn_cropped": "cifar-cnn",
}
_IMAGE_MODEL, _TABLE_MODEL = "cnn", "mlp"  # models for other data sets


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
      data: Data set and partition.
      model: The model; by default one that suits the data set.
      algorithm: The algorithm, its options and the clients' optimizer.
      server_optimizer: Server optimizer, for algorithms that have one.
      training: Local training.
      pretraining: Source of the initial parameters.
      wire: Compression of uploads and messages.
      robust: Defences against hostile clients.
      attack: Hostile clients.
      privacy: Differential privacy.
      storage: Place of clients' states and training data.
      rounds: Rounds of federated learning.
      cohort: Clients per round; by default 10, or all where there are fewer.
      seed: Seed of the initial state, the cohorts and the order of examples.
      eval_every: Rounds between two evaluations; by default a twentieth of all rounds.
      eval_clients: Number of clients whose personal models are evaluated, the same ones in every run; none is
        all, but at most 10,000.
      plan: Execution plan; never changes results.
      devices: Devices and links of the clients, such as ``rpi4@wifi``; none simulates no time; see
        :func:`fedjax_masks.costs.devices.make_population`.
      log: Backends for records beside ``metrics.jsonl``, joined by ``+``: tensorboard, wandb, mlflow.
      keep_checkpoints: Number of checkpoints that are kept.
      checkpoint_share: Largest share of the run's time for writing checkpoints; 1 saves at the end of every
        chunk of rounds.
    """

    data: DataConfig
    model: Part
    algorithm: Part
    server_optimizer: ServerOptimizerConfig
    training: TrainingConfig
    pretraining: PretrainingConfig
    wire: WireConfig
    robust: RobustConfig
    attack: AttackConfig
    privacy: PrivacyConfig
    storage: StorageConfig
    rounds: Count = 50
    cohort: Count = 10
    seed: Seed = 0
    eval_every: Count = 1
    eval_clients: Count | None = None
    plan: str = "auto"
    devices: str | None = None
    log: str | None = None
    keep_checkpoints: Count = 3
    checkpoint_share: Share = 0.02


def sections() -> dict[str, type]:
    """The dataclasses that describe the keys, by the keys' prefix."""
    return {"": Config, **{f"{name}.": section for name, section in SECTIONS.items()}}


def _options_of(section: type, prefix: str) -> dict[str, Option]:
    return {prefix + field.name: Option(field.type, field.default) for field in fields(section)}


def _model_options(name: str) -> dict[str, Option]:
    return model_signature(name).options


def _algorithm_options(name: str) -> dict[str, Option]:
    return registry.parameters(name) | registry.optimizer_options(name)


def keys(algorithm: str, model: str, dataset: str = "digits") -> dict[str, Option]:
    """All keys of a configuration with an algorithm, a model and a data set.

    Raises:
      UserError: There is no such algorithm or model.

    >>> keys("fedmask", "cnn")["algorithm.score_scale"].default
    1.0
    """
    options = {"algorithm.name": Option(str, algorithm), "model.name": Option(str, model)}
    options |= {f"algorithm.{key}": option for key, option in _algorithm_options(algorithm).items()}
    options |= {f"model.{key}": option for key, option in _model_options(model).items()}
    for prefix, section in sections().items():
        options |= _options_of(section, prefix)
    options["training.epochs"] = Option(Count, registry.get(algorithm).epochs)
    options["data.name"] = Option(str, dataset)
    return {key: option for key, option in options.items() if is_plain(option.annotation)}


def make_config(values: Mapping[str, Any]) -> Config:
    """Makes a complete, checked configuration.

    Args:
      values: Dotted keys to values, typed or as text; ``algorithm.name`` is required.

    Raises:
      UserError: A key does not exist, a value has the wrong type or lies out of range, or two
        values contradict each other.

    >>> config = make_config({"algorithm.name": "fedmask", "algorithm.score_lr": "50"})
    >>> config.algorithm.options["score_lr"], config.training.epochs, config.model.name
    (50.0, 5, 'cnn')
    """
    algorithm = values.get("algorithm.name")
    if algorithm is None:
        match = nearest_name("algorithm.name", values.keys() - all_keys().keys())
        hint = f"; did you mean it by {match!r}?" if match else ""
        raise UserError(f"algorithm.name: must be given, as one of {', '.join(registry.names())}{hint}")
    dataset = str(values.get("data.name", "digits"))
    model = values.get("model.name", _default_model(dataset))
    options = keys(str(algorithm), str(model), dataset)
    for key in values:
        if key not in options:
            raise UserError(f"{key}: unknown key{_hint(key, options)}; all: 'fedjax-masks list keys'")
    for key, option in options.items():
        if option.default is REQUIRED and key not in values:
            raise UserError(f"{key}: must be given, as {describe(option.annotation)}")
    complete = {key: coerce(key, values.get(key, o.default), o.annotation) for key, o in options.items()}
    fill_defaults(complete, values.keys())
    check_values(complete)
    return _nest(complete)


def _default_model(dataset: str) -> str:
    """A model that suits a data set; for npz: and npy: data, by the shape of the inputs."""
    if is_user_data(dataset):
        shape = files.input_shape(dataset)
        return _TABLE_MODEL if shape is None or len(shape) == 1 else _IMAGE_MODEL
    return _MODEL_OF.get(dataset.partition("/")[0], _IMAGE_MODEL)


def _hint(key: str, options: Mapping[str, Option]) -> str:
    """The algorithms and models that have the unknown key, or else the nearest key."""
    last = key.rpartition(".")[2]
    for other in (f"algorithm.{last}", f"model.{last}"):
        if other not in options and key in (last, other) and synonym(last, options) is None and owners(other):
            return f"; {other} is a key of {' and '.join(owners(other))}"
    match = nearest_key(key, options)
    return "" if match is None else f"; the nearest is {match}"


def owners(key: str) -> list[str]:
    """The algorithms, or the models, that have a key.

    >>> owners("algorithm.mu")
    ['fedprox']
    """
    kind, _, last = key.rpartition(".")
    if kind == "algorithm":
        return [name for name in registry.importable() if last in _algorithm_options(name)]
    return [name for name in MODELS if kind == "model" and last in _model_options(name)]


def all_keys() -> dict[str, Option]:
    """The keys of every algorithm and every model."""
    options: dict[str, Option] = {}
    for name in registry.importable():
        options |= keys(name, "mlp")
    for name in MODELS:
        options |= keys("fedavg", name)
    return options


def _nest(values: Mapping[str, Any]) -> Config:
    nested: dict[str, dict[str, Any]] = {"": {}, "model": {}, "algorithm": {}, **{s: {} for s in SECTIONS}}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        nested[section][name] = value
    parts = {name: nested[name] for name in ("model", "algorithm")}
    return Config(
        **{name: Part(options.pop("name"), options) for name, options in parts.items()},
        **{name: section(**nested[name]) for name, section in SECTIONS.items()},
        **nested[""],
    )


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, ready for JSON; :func:`flat` is the inverse."""
    nested = dataclasses.asdict(config)
    for name in ("model", "algorithm"):
        nested[name] |= nested[name].pop("options")
    return nested


def read_file(path: str | Path) -> dict[str, Any]:
    """The flat keys of a TOML file.

    Raises:
      UserError: The file does not exist, or is not TOML.
    """
    try:
        return flat(tomllib.loads(regular_file(path).read_text("utf-8")))
    except OSError as error:
        raise UserError(f"config={str(path)!r}: must be a readable TOML file; {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"config={str(path)!r}: must be a TOML file; {error}") from None
