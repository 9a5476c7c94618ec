"""The objects that a configuration describes: data, model, algorithm, and the transforms around it."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from fedjax_masks.algorithms import building, registry
from fedjax_masks.communication.codecs import clip_and_noise, parse_codec
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.schedules import parse_schedule
from fedjax_masks.costs.devices import Population, make_population
from fedjax_masks.data import load_task
from fedjax_masks.data.augment import AUGMENTATIONS
from fedjax_masks.experiment.config import Config
from fedjax_masks.experiment.pretraining import Pretrained, pretrain, start_from
from fedjax_masks.experiment.sections import RobustConfig, ServerOptimizerConfig
from fedjax_masks.models import Model, Problem, build_model, parameters
from fedjax_masks.transforms import privacy, robust
from fedjax_masks.transforms.attacks import with_attack
from fedjax_masks.transforms.compression import with_codecs


def build(config: Config) -> tuple[FederatedAlgorithm, Task]:
    """Loads the data and builds model and algorithm.

    Raises:
      ValueError: A name does not exist, or two parts do not fit together.
    """
    task = load(config)
    return algorithm_maker(config, task)(config), task


def algorithm_maker(config: Config, task: Task) -> Callable[[Config], FederatedAlgorithm]:
    """A function that builds the algorithm of a configuration.

    The function also takes configurations that differ from this one in the algorithm's options, so that
    data, model and pre-trained parameters are made once.

    Raises:
      ValueError: A name does not exist, or two parts do not fit together.
    """
    training, make_model = config.training, _model_maker(config)
    pretrained = pretrain(make_model, task, config.pretraining, cache_dir=config.data.cache_dir)
    model = start_from(make_model(task), pretrained.params)
    extra: dict[str, Any] = {}
    devices = population(config, task)
    if devices is not None and "capability" in registry.parameters(config.algorithm.name):
        extra["capability"] = np.asarray(devices.fleet.flops)

    def make(config: Config) -> FederatedAlgorithm:
        algorithm = building.build(
            config.algorithm.name,
            model,
            options={**config.algorithm.options, **extra},
            server_optimizer=_server_optimizer(config.server_optimizer),
            epochs=training.epochs,
            batch_size=training.batch_size,
            schedule=None if training.schedule is None else parse_schedule(training.schedule, config.rounds),
            clip_norm=training.clip_norm,
            augment=AUGMENTATIONS[training.augment],
            precision=training.precision,
        )
        return _surround(algorithm, config, task, devices)

    return make


def _surround(
    algorithm: FederatedAlgorithm, config: Config, task: Task, devices: Population | None
) -> FederatedAlgorithm:
    """Wraps an algorithm in the configuration's attack, defences, noise and compression."""
    attack = config.attack
    if attack.kind is not None:
        algorithm = with_attack(
            algorithm, attack.kind, share=attack.share, factor=attack.factor, seed=attack.seed
        )
    if defences := _defences(config.robust):
        algorithm = robust.with_robust_merge(algorithm, *defences)
    algorithm = _with_noise(algorithm, config, task, devices)
    up, down = (parse_codec(text) if text else None for text in (config.wire.up, config.wire.down))
    return with_codecs(algorithm, up=up, down=down) if up or down else algorithm


def _defences(config: RobustConfig) -> list[robust.Defence]:
    defences = [] if config.clip is None else [robust.clip(config.clip)]
    if config.clip_to_median is not None:
        defences.append(robust.clip_to_median(config.clip_to_median))
    if config.merge == "median":
        defences.append(robust.median())
    if config.trim is not None:
        defences.append(robust.trimmed_mean(config.trim))
    return defences


def _with_noise(
    algorithm: FederatedAlgorithm, config: Config, task: Task, devices: Population | None
) -> FederatedAlgorithm:
    noise = config.privacy
    if noise.norm is None or noise.multiplier is None:
        return algorithm
    if devices is not None and devices.loses_clients:
        raise UserError(
            f"devices={config.devices}: must keep deadline, dropout and available at their defaults with "
            "privacy.norm; clients that drop out take their noise with them"
        )
    return with_codecs(
        privacy.with_equal_weights(algorithm, float(task.train.sizes.mean())),
        up=clip_and_noise(noise.norm, noise.multiplier, cohort=config.cohort),
    )


def guarantee(config: Config, task: Task) -> dict[str, float]:
    """The guarantee of a private run, for its summary: ``epsilon`` and ``delta``; else nothing.

    Raises:
      ValueError: There is no such guarantee, or the library that computes it is missing.
    """
    noise = config.privacy
    if noise.norm is None or noise.multiplier is None:
        return {}
    delta = privacy.default_delta(task.num_clients) if noise.delta is None else noise.delta
    epsilon = privacy.epsilon(
        clients=task.num_clients,
        cohort=config.cohort,
        rounds=config.rounds,
        multiplier=noise.multiplier,
        delta=delta,
    )
    return {"epsilon": epsilon, "delta": delta}


def fingerprints(config: Config, task: Task) -> dict[str, str]:
    """SHA-256 digests of a run's inputs outside of its configuration, by the key that names them.

    They cover the data and their division, the random numbers of the seed, which JAX's settings decide, the
    clients' devices, and parameters from a file.
    """
    arrays = (task.inputs, task.labels, task.test_inputs, task.test_labels, *task.train, *task.test)
    digests = {
        "data.name": digest(*arrays),
        "seed": digest(np.asarray(jax.random.bits(jax.random.key(config.seed), (8,), "uint32"))),
    }
    if (devices := population(config, task)) is not None:
        digests["devices"] = digest(*jax.tree.leaves(devices.fleet))
    source = config.pretraining.source
    if source.partition(":")[0] in parameters.FORMATS:
        digests["pretraining.source"] = digest(*jax.tree.leaves(parameters.read(source)))
    return digests


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the dtypes, shapes and values of arrays, in hexadecimal.

    >>> digest(np.zeros(3)) == digest(np.zeros(3)) != digest(np.zeros((3, 1)))
    True
    """
    sha = hashlib.sha256()
    for array in map(np.asarray, arrays):
        sha.update(f"{array.dtype} {array.shape}".encode())
        # In pieces, so that a memory-mapped array is never in memory as a whole.
        for piece in np.array_split(array.reshape(-1), 1 + array.nbytes // 2**26):
            sha.update(np.ascontiguousarray(piece).tobytes())
    return sha.hexdigest()


def initial_params(config: Config) -> Pretrained:
    """Trains or loads the parameters that runs with this configuration start from.

    Raises:
      ValueError: A name does not exist, or two parts do not fit together.
    """
    return pretrain(_model_maker(config), load(config), config.pretraining, cache_dir=config.data.cache_dir)


def load(config: Config) -> Task:
    """Loads and divides the data.

    Raises:
      UserError: They do not exist, or cannot be divided as the configuration says.
    """
    data = dataclasses.asdict(config.data)
    return load_task(data.pop("name"), data_dir=data.pop("dir"), **data)


def _model_maker(config: Config) -> Callable[[Problem], Model]:
    return lambda problem: build_model(config.model.name, problem, **config.model.options)


def population(config: Config, task: Task) -> Population | None:
    """The clients' devices and links; None where no time is simulated."""
    if config.devices is None:
        return None
    return make_population(config.devices, task.num_clients, seed=config.seed)


def _server_optimizer(config: ServerOptimizerConfig) -> optax.GradientTransformation | None:
    if config.name is None or config.lr is None:
        return None
    # Pseudo-gradients are small, and under optax's epsilon all would be scaled to the same step;
    # 1e-3 is best on most tasks of Reddi et al. 2021, appendix D.
    options = {} if config.name == "sgd" else {"eps": 1e-3}
    return building.make_optimizer(
        config.name, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, **options
    )
