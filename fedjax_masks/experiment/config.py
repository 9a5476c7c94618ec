"""The configuration of one experiment: typed, complete, checked before anything expensive.

Every choice has exactly one dotted key (``rounds``, ``data.partition``, ``algorithm.score_lr``).
The keys of ``algorithm`` and ``model`` are the keyword-only parameters of the chosen factories.
Command line, file and Python give flat mappings from keys to values; of several mappings, the
later one wins: first the file, then the flags, then ``--set``.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from fedjax_masks.algorithms import registry
from fedjax_masks.algorithms.registry import OptimizerName, Option
from fedjax_masks.core.errors import UserError, regular_file, unknown
from fedjax_masks.core.options import (
    Bounds,
    Count,
    Decay,
    Momentum,
    Rate,
    Seed,
    Share,
    coerce,
    describe,
    is_plain,
)
from fedjax_masks.core.synonyms import meant, meant_key, synonym
from fedjax_masks.core.trees import flat
from fedjax_masks.data import files
from fedjax_masks.data.arrays import MOST_CLASSES, Channels
from fedjax_masks.data.scaling import Scale
from fedjax_masks.data.sources import is_own
from fedjax_masks.experiment.pretraining import Pretraining
from fedjax_masks.experiment.trackers import parse as parse_trackers
from fedjax_masks.simulation.storage import Where, WhereClients
from fedjax_masks.transforms.attacks import Kind

_MOST_EVALUATED = 10_000  # clients, unless more are asked for
_MODEL_OF = {
    "digits": "cnn",
    "mnist": "lenet",
    "fashion_mnist": "lenet",
    "emnist": "femnist-cnn",
    "cifar10": "cifar-cnn",
    "cifar100": "cifar-cnn",
    "svhn_cropped": "cifar-cnn",
}
_IMAGE_MODEL, _TABLE_MODEL = "cnn", "mlp"  # of other data sets


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are divided; see :func:`fedjax_masks.load_task`.

    Attributes:
      name: The data set.
      dir: Where prepared tensorflow-datasets lie; nothing is downloaded when it is given.
      cache_dir: Where decoded arrays are kept.
      partition: How data are divided among clients.
      clients: Number of clients; none is 100, or all there are with ``natural``.
      seed: The partition's seed, independent of the run's.
      examples_per_client: At most so many training examples per client, chosen at random.
      test_per_client: At most so many test examples per client, chosen at random.
      scale: The scale of inputs: ``auto`` keeps those that train as they are, and else standardizes tables
        and brings images to -1 to 1 by ``minmax``; see :func:`fedjax_masks.data.scaling.scaled`.
      channels: Of your own images: ``first`` moves channels to the end; ``auto`` refuses images that look
        channel-first.
      relabel: Numbers your own labels anew, in sorted order.
      classes: Of your own data; none counts the labels.
    """

    name: str = "digits"
    dir: str | None = None
    cache_dir: str | None = None
    partition: str = "iid"
    clients: Count | None = None
    seed: Seed = 0
    examples_per_client: Count | None = None
    test_per_client: Count | None = None
    scale: Scale = "auto"
    channels: Channels = "auto"
    relabel: bool = False
    classes: Annotated[int, Bounds(1, MOST_CLASSES)] | None = None


@dataclass(frozen=True)
class Part:
    """A named part of the experiment, and its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """The server's optimiser (Reddi et al. 2021).

    Attributes:
      name: An optimiser; none takes the mean itself.
      lr: Its learning rate; none is 1 for sgd and 0.01 for the others.
      momentum: Of sgd and rmsprop.
      weight_decay: Decoupled for adamw, added to the gradient for the others.
    """

    name: OptimizerName | None = None
    lr: Rate | None = None
    momentum: Momentum = 0.0
    weight_decay: Decay = 0.0


@dataclass(frozen=True)
class TrainingConfig:
    """Local training.

    Attributes:
      epochs: Local epochs.
      batch_size: Examples per local step.
      augment: What is done to every training batch.
    """

    epochs: Count
    batch_size: Count = 10
    augment: Literal["none", "crop_flip"] = "none"


@dataclass(frozen=True)
class WireConfig:
    """Compression, see :func:`fedjax_masks.transforms.compression.parse_wire`.

    Attributes:
      up: Of uploads.
      down: Of messages.
    """

    up: str | None = None
    down: str | None = None


@dataclass(frozen=True)
class RobustConfig:
    """What the server does about hostile clients; see :mod:`fedjax_masks.transforms.robust`.

    Attributes:
      merge: What takes the place of the weighted mean.
      trim: The share that ``trimmed_mean`` cuts off at either end; 0.2 by default.
      clip: The largest l2 norm of an upload.
      clip_to_median: The same, in median norms of the cohort.
    """

    merge: Literal["mean", "median", "trimmed_mean"] = "mean"
    trim: Annotated[float, Bounds(0, 0.5, below=True)] | None = None
    clip: Rate | None = None
    clip_to_median: Rate | None = None


@dataclass(frozen=True)
class AttackConfig:
    """Hostile clients, see :func:`fedjax_masks.transforms.attacks.with_attack`.

    Attributes:
      kind: What they do to their uploads; none is no such clients.
      share: Share of all clients that is hostile.
      factor: What ``scale`` multiplies an upload by.
      seed: Which clients they are.
    """

    kind: Kind | None = None
    share: Share = 0.2
    factor: Rate = 1000.0
    seed: Seed = 0


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of whole clients; see :mod:`fedjax_masks.transforms.privacy`.

    Attributes:
      norm: The largest l2 norm of an upload; without it, nothing is clipped and no noise added.
      multiplier: The noise of a round's sum, in norms.
      delta: By default the number of clients to the power of -1.1.
    """

    norm: Rate | None = None
    multiplier: Rate | None = None
    delta: Annotated[float, Bounds(0, 1, above=True, below=True)] | None = None


@dataclass(frozen=True)
class StorageConfig:
    """Where things lie between chunks of rounds; see :class:`fedjax_masks.simulation.Storage`.

    Attributes:
      clients: The clients' states; ``auto`` takes the host if they would fill half of the device.
      data: The training data; the same.
    """

    clients: WhereClients = "auto"
    data: Where = "auto"


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
      data: The data set and its division.
      model: The model; by default one that suits the data set.
      algorithm: The algorithm, its options and its clients' optimiser.
      server_optimizer: For algorithms that have one.
      training: Local training.
      pretraining: Where the initial parameters come from.
      wire: What compresses uploads and messages on their way.
      robust: What the server does about hostile clients.
      attack: Hostile clients.
      privacy: Noise on uploads, and its guarantee.
      storage: Where clients' states and training data lie between chunks of rounds.
      rounds: Rounds of federated learning.
      cohort: Clients per round; by default 10, or all where there are fewer.
      seed: Of the initial state, the cohorts and the order of examples.
      eval_every: Rounds between two evaluations; by default a twentieth of all rounds.
      eval_clients: Evaluate the own models of so many clients, the same in every run; by default of all,
        or of 10,000 if there are more.
      plan: The execution plan; never changes results.
      devices: The clients' devices and links, see :func:`fedjax_masks.costs.devices.make_population`; by
        default no time is simulated.
      log: Where records go beside ``metrics.jsonl``: names of :mod:`~fedjax_masks.experiment.trackers`,
        joined by ``+``.
      keep_checkpoints: How many checkpoints stay.
      checkpoint_share: The share of the time that checkpoints may take; 1 saves at every
        chunk's end.
    """

    data: DataConfig
    model: Part
    algorithm: Part
    server_optimizer: ServerOptimizerConfig
    training: TrainingConfig
    pretraining: Pretraining
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


_SECTIONS = {
    "data": DataConfig,
    "server_optimizer": ServerOptimizerConfig,
    "training": TrainingConfig,
    "pretraining": Pretraining,
    "wire": WireConfig,
    "robust": RobustConfig,
    "attack": AttackConfig,
    "privacy": PrivacyConfig,
    "storage": StorageConfig,
}


def sections() -> dict[str, type]:
    """What describes the keys of each prefix."""
    return {"": Config, **{f"{name}.": section for name, section in _SECTIONS.items()}}


def _options_of(section: type, prefix: str) -> dict[str, Option]:
    return {prefix + field.name: Option(field.type, field.default) for field in fields(section)}


def _model_options(name: str) -> dict[str, Option]:
    from fedjax_masks.models import MODELS

    if name not in MODELS:
        raise unknown("model.name", name, MODELS)
    return registry.options_of(MODELS[name])


def _algorithm_options(name: str) -> dict[str, Option]:
    shared = ("epochs", "batch_size")
    own = {key: option for key, option in registry.parameters(name).items() if key not in shared}
    return own | registry.optimizer_options(name)


def keys(algorithm: str, model: str, dataset: str = "digits") -> dict[str, Option]:
    """All keys that there are, given an algorithm, a model and a data set.

    Raises:
      UserError: There is no such algorithm or model.

    >>> keys("fedmask", "cnn")["algorithm.score_scale"].default
    1.0
    """
    epochs = registry.parameters(algorithm)["epochs"].default
    options = {"algorithm.name": Option(str, algorithm), "model.name": Option(str, model)}
    options |= {f"algorithm.{key}": option for key, option in _algorithm_options(algorithm).items()}
    options |= {f"model.{key}": option for key, option in _model_options(model).items()}
    options |= _options_of(Config, "")
    for name, section in _SECTIONS.items():
        options |= _options_of(section, f"{name}.")
    options["training.epochs"] = Option(Count, epochs)
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
        near = meant("algorithm.name", values.keys() - all_keys().keys())
        hint = f"; did you mean it by {near!r}?" if near else ";"
        raise UserError(f"algorithm.name: missing{hint} accepted are {', '.join(registry.REGISTRY)}")
    dataset = str(values.get("data.name", "digits"))
    model = values.get("model.name", _default_model(dataset))
    options = keys(str(algorithm), str(model), dataset)
    for key in values:
        if key not in options:
            raise UserError(f"{key}: unknown key{_hint(key, options)}; all: 'fedjax-masks list keys'")
    for key, option in options.items():
        if option.default is registry.REQUIRED and key not in values:
            raise UserError(f"{key}: missing; {describe(option.annotation)} is accepted")
    typed = {key: coerce(key, values.get(key, o.default), o.annotation) for key, o in options.items()}
    _fill(typed, given=values)
    _check(typed)
    return _nest(typed)


def _default_model(dataset: str) -> str:
    """A model that suits a data set: of a user's own, by what a header says of the inputs."""
    if is_own(dataset):
        shape = files.input_shape(dataset)
        return _TABLE_MODEL if shape is None or len(shape) == 1 else _IMAGE_MODEL
    return _MODEL_OF.get(dataset.partition("/")[0], _IMAGE_MODEL)


def _hint(key: str, options: Mapping[str, Option]) -> str:
    """The key that was probably meant, or the algorithms and models that have the one that was named."""
    last = key.rpartition(".")[2]
    for other in (f"algorithm.{last}", f"model.{last}"):
        if other not in options and key in (last, other) and synonym(last, options) is None and owners(other):
            return f"; {other} is a key of {' and '.join(owners(other))}"
    near = meant_key(key, options)
    return "" if near is None else f"; the nearest is {near}"


def owners(key: str) -> list[str]:
    """The algorithms, or the models, that have a key of their own.

    >>> owners("algorithm.mu")
    ['fedprox']
    """
    from fedjax_masks.models import MODELS

    kind, _, last = key.rpartition(".")
    if kind == "algorithm":
        return [name for name in registry.REGISTRY if last in _algorithm_options(name)]
    return [name for name in MODELS if kind == "model" and last in _model_options(name)]


def all_keys() -> dict[str, Option]:
    """The keys of every algorithm and every model."""
    from fedjax_masks.models import MODELS

    found: dict[str, Option] = {}
    for name in registry.REGISTRY:
        found |= keys(name, "mlp")
    for name in MODELS:
        found |= keys("fedavg", name)
    return found


def _fill(typed: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Fills in the defaults that depend on other values."""
    if typed["data.clients"] is None and not typed["data.partition"].startswith("natural"):
        typed["data.clients"] = 100
    if "cohort" not in given:
        there = typed["data.clients"]
        if there is None and is_own(typed["data.name"]):
            there = files.count_clients(typed["data.name"])
        typed["cohort"] = min(typed["cohort"], there or typed["cohort"])
    if "eval_every" not in given:
        typed["eval_every"] = -(-typed["rounds"] // 20)
    if typed["eval_clients"] is None and (typed["data.clients"] or 0) > _MOST_EVALUATED:
        typed["eval_clients"] = _MOST_EVALUATED
    if typed["server_optimizer.name"] and typed["server_optimizer.lr"] is None:
        typed["server_optimizer.lr"] = 1.0 if typed["server_optimizer.name"] == "sgd" else 0.01
    if typed["robust.merge"] == "trimmed_mean" and typed["robust.trim"] is None:
        typed["robust.trim"] = 0.2
    if typed["privacy.norm"] and typed["privacy.multiplier"] is None:
        typed["privacy.multiplier"] = 1.0


def _check(typed: Mapping[str, Any]) -> None:
    """Refuses values that contradict each other, and backends that do not exist."""
    parse_trackers(typed["log"])
    name, clients, cohort = typed["algorithm.name"], typed["data.clients"], typed["cohort"]
    if clients is not None and cohort > clients:
        raise UserError(f"cohort={cohort}: accepted are 1 to {clients}, the number of clients")
    server = typed["server_optimizer.name"]
    if server and "server_optimizer" not in registry.parameters(name):
        with_one = [other for other in registry.REGISTRY if "server_optimizer" in registry.parameters(other)]
        raise UserError(
            f"server_optimizer.name={server}: {name} has none; accepted with {', '.join(with_one)}"
        )
    if typed["server_optimizer.lr"] is not None and not server:
        raise UserError("server_optimizer.lr: needs server_optimizer.name")
    if typed["robust.trim"] is not None and typed["robust.merge"] != "trimmed_mean":
        raise UserError(f"robust.trim={typed['robust.trim']}: needs robust.merge=trimmed_mean")
    _check_privacy(typed)


def _check_privacy(typed: Mapping[str, Any]) -> None:
    """Refuses what the guarantee of :mod:`fedjax_masks.transforms.privacy` does not cover."""
    if typed["privacy.norm"] is None:
        for key in ("privacy.multiplier", "privacy.delta"):
            if typed[key] is not None:
                raise UserError(f"{key}={typed[key]}: needs privacy.norm")
        return
    for key, off in (("robust.merge", "mean"), ("robust.clip", None), ("robust.clip_to_median", None)):
        if typed[key] != off:
            raise UserError(
                f"{key}={typed[key]}: reads single uploads; privacy.norm needs a server that adds up"
            )
    if typed["wire.up"] is not None:
        raise UserError(
            f"wire.up={typed['wire.up']}: loses noise before the sum; accepted without privacy.norm"
        )
    if typed["attack.kind"] is not None:
        raise UserError(
            f"attack.kind={typed['attack.kind']}: hostile clients add no noise; accepted without privacy.norm"
        )


def _nest(typed: Mapping[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {"": {}, "model": {}, "algorithm": {}, **{s: {} for s in _SECTIONS}}
    for key, value in typed.items():
        section, _, name = key.rpartition(".")
        sections[section][name] = value
    parts = {name: sections[name] for name in ("model", "algorithm")}
    return Config(
        **{name: Part(values.pop("name"), values) for name, values in parts.items()},
        **{name: section(**sections[name]) for name, section in _SECTIONS.items()},
        **sections[""],
    )


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, ready for JSON; read by :func:`flat`."""
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
        raise UserError(f"config={str(path)!r}: {error.strerror}; a TOML file is accepted") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"config={str(path)!r}: {error}; a TOML file is accepted") from None
