"""Algorithms by name, with options read off their factories' signatures.

A new algorithm is one line in :data:`REGISTRY`: its keyword-only parameters become
configuration keys by inspection.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optax

from fedjax_masks.algorithms.adp import adp
from fedjax_masks.algorithms.ecofed import ecofed
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.feddst import feddst
from fedjax_masks.algorithms.fedgkt import fedgkt
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.algorithms.fednova import fednova
from fedjax_masks.algorithms.fedpm import fedpm
from fedjax_masks.algorithms.fedprox import fedprox
from fedjax_masks.algorithms.fedsgd import fedsgd
from fedjax_masks.algorithms.fedskel import fedskel
from fedjax_masks.algorithms.heterofl import heterofl
from fedjax_masks.algorithms.lgfedavg import lgfedavg
from fedjax_masks.algorithms.lgl import lgl
from fedjax_masks.algorithms.local import local
from fedjax_masks.algorithms.lotteryfl import lotteryfl
from fedjax_masks.algorithms.mpfl import mpfl
from fedjax_masks.algorithms.perfedavg import perfedavg
from fedjax_masks.algorithms.scaffold import scaffold
from fedjax_masks.algorithms.sign import sign
from fedjax_masks.algorithms.splitfed import splitfed
from fedjax_masks.algorithms.topk import topk
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.errors import UserError, unknown
from fedjax_masks.core.options import Decay, Momentum, Rate
from fedjax_masks.models import Model


@dataclass(frozen=True)
class Entry:
    """How to build an algorithm from a configuration.

    Attributes:
      factory: ``(model, optimizer, *, epochs, batch_size, ...) -> FederatedAlgorithm``.
      optimizer: The clients' optimiser, by its name in optax.
      lr: Its default learning rate.
      prefix: Prepended to the keys of the clients' optimiser, where it moves something other
        than parameters.
    """

    factory: Callable[..., FederatedAlgorithm]
    optimizer: str
    lr: float
    prefix: str = ""


REGISTRY: dict[str, Entry] = {
    "adp": Entry(adp, "sgd", 0.03),
    "ecofed": Entry(ecofed, "sgd", 0.03),
    "fedavg": Entry(fedavg, "sgd", 0.03),
    "feddst": Entry(feddst, "sgd", 0.03),
    "fedgkt": Entry(fedgkt, "sgd", 0.03),
    "fedmask": Entry(fedmask, "sgd", 100.0, prefix="score_"),
    "fednova": Entry(fednova, "sgd", 0.03),
    "fedpm": Entry(fedpm, "adam", 0.1, prefix="score_"),
    "fedprox": Entry(fedprox, "sgd", 0.03),
    "fedsgd": Entry(fedsgd, "sgd", 0.1),
    "fedskel": Entry(fedskel, "sgd", 0.03),
    "heterofl": Entry(heterofl, "sgd", 0.03),
    "lgfedavg": Entry(lgfedavg, "sgd", 0.03),
    "lgl": Entry(lgl, "sgd", 0.03),
    "local": Entry(local, "sgd", 0.03),
    "lotteryfl": Entry(lotteryfl, "sgd", 0.03),
    "mpfl": Entry(mpfl, "adam", 0.01),
    "perfedavg": Entry(perfedavg, "sgd", 0.03),
    "scaffold": Entry(scaffold, "sgd", 0.03),
    "sign": Entry(sign, "sgd", 0.03),
    "splitfed": Entry(splitfed, "sgd", 0.03),
    "topk": Entry(topk, "sgd", 0.03),
}

OptimizerName = Literal["sgd", "adam", "adamw", "yogi", "adagrad", "rmsprop"]
_WITH_MOMENTUM = ("sgd", "rmsprop")


@dataclass(frozen=True)
class Option:
    """One configuration key of an algorithm: its type and its default.

    Attributes:
      annotation: The type.
      default: The default; :data:`REQUIRED` without one.
    """

    annotation: Any
    default: Any


REQUIRED = inspect.Parameter.empty


def options_of(factory: Callable[..., Any]) -> dict[str, Option]:
    """Parameters of a factory that options can give, in order; without annotation, of their default's type.

    >>> options_of(lambda task, *, width=3, names=("a",): None)["width"].annotation
    <class 'int'>
    """
    signature = inspect.signature(factory, eval_str=True)
    return {
        key: Option(_type_of(parameter), parameter.default)
        for key, parameter in signature.parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not REQUIRED
    }


def _type_of(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    default = parameter.default
    if isinstance(default, tuple | list) and len({*map(type, default)}) == 1:
        return Sequence[type(default[0])]
    return type(default)


def get(name: str) -> Entry:
    """The entry of an algorithm.

    Raises:
      UserError: There is none of this name.
    """
    if name not in REGISTRY:
        raise unknown("algorithm.name", name, REGISTRY)
    return REGISTRY[name]


def parameters(name: str) -> dict[str, Option]:
    """All options of an algorithm's factory, in their order.

    Raises:
      UserError: There is no such algorithm, or its factory lacks what all have.
    """
    found = options_of(get(name).factory)
    for key in ("epochs", "batch_size"):
        if key not in found:
            raise UserError(f"algorithm.name={name!r}: must have a factory with a keyword {key}")
    return found


def optimizer_options(name: str) -> dict[str, Option]:
    """The keys of the clients' optimiser.

    >>> list(optimizer_options("fedmask"))
    ['score_optimizer', 'score_lr', 'score_momentum', 'score_weight_decay']
    """
    entry = get(name)
    options = {
        "optimizer": Option(OptimizerName, entry.optimizer),
        "lr": Option(Rate, entry.lr),
        "momentum": Option(Momentum, 0.0),
        "weight_decay": Option(Decay, 0.0),
    }
    return {entry.prefix + key: option for key, option in options.items()}


def check_rate(name: str, value: str) -> None:
    """Refuses a learning rate for an algorithm whose clients train no parameters.

    Args:
      name: The algorithm.
      value: The rate, for the message.

    Raises:
      UserError: They train something else, at a rate of another size.
    """
    entry = get(name)
    if entry.prefix:
        key = f"algorithm.{entry.prefix}lr"
        raise UserError(
            f"lr={value}: must be left out, {name} trains no weights; the rate of what it trains is "
            f"--set {key}=RATE (default: {entry.lr:g})"
        )


def make_optimizer(
    name: str, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0, **options: Any
) -> optax.GradientTransformation:
    """An optimiser of optax by its name.

    Args:
      name: One of :data:`OptimizerName`.
      lr: Learning rate.
      momentum: Only for those that have it: sgd and rmsprop.
      weight_decay: Decoupled for adamw; for the others, added to the gradient.
      **options: Passed on to optax.

    Raises:
      UserError: Momentum for an optimiser that has none.
    """
    if momentum and name not in _WITH_MOMENTUM:
        raise UserError(f"momentum={momentum}: {name} has none; accepted with {' and '.join(_WITH_MOMENTUM)}")
    if momentum:
        options["momentum"] = momentum
    if name == "adamw":
        return optax.adamw(lr, weight_decay=weight_decay, **options)
    optimizer = getattr(optax, name)(lr, **options)
    if not weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)


def build(
    name: str,
    model: Model,
    *,
    options: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    server_optimizer: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """Builds an algorithm by name.

    Args:
      name: A key of :data:`REGISTRY`.
      model: The model.
      options: The factory's keyword-only arguments and the keys of the clients' optimiser.
      epochs: Local epochs.
      batch_size: Examples per local step.
      server_optimizer: For algorithms that have one.

    Raises:
      UserError: The algorithm does not have what was asked for.
      ValueError: An option is out of range.
    """
    entry = get(name)
    names = {key: key.removeprefix(entry.prefix) for key in optimizer_options(name)}
    own = {key: value for key, value in options.items() if key not in names}
    chosen = {names[key]: value for key, value in options.items() if key in names}
    if server_optimizer is not None:
        own["server_optimizer"] = server_optimizer
    optimizer = make_optimizer(chosen.pop("optimizer", entry.optimizer), chosen.pop("lr", entry.lr), **chosen)
    return entry.factory(model, optimizer, epochs=epochs, batch_size=batch_size, **own)
