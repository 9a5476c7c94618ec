"""Algorithms by name, with options read off their factories' signatures; needs no jax.

A new algorithm is one line in :data:`REGISTRY`: its keyword-only parameters become configuration keys.
Another package registers one by an entry point in the group ``fedjax_masks.algorithms``: the entry point has
the algorithm's name, and leads to a factory or an :class:`Entry`. The functions that build algorithms are in
:mod:`fedjax_masks.algorithms.building`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fedjax_masks.core.errors import UserError, one_line, unknown_name
from fedjax_masks.core.lazy import load
from fedjax_masks.core.options import Decay, Momentum, Rate
from fedjax_masks.core.signatures import REQUIRED, Option, Signature, signature_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from fedjax_masks.core.algorithm import FederatedAlgorithm

__all__ = [
    "GROUP",
    "REGISTRY",
    "REQUIRED",
    "Entry",
    "OptimizerName",
    "Option",
    "check_rate",
    "get",
    "importable",
    "names",
    "optimizer_options",
    "parameters",
]

Factory = Callable[..., "FederatedAlgorithm"]
GROUP = "fedjax_masks.algorithms"


@dataclass(frozen=True)
class Entry:
    """An algorithm on the command line: its factory, and the defaults of its local training there.

    Attributes:
      source: The factory ``(model, trainer, *, ...) -> FederatedAlgorithm``, or ``"module:name"`` of it.
      optimizer: The clients' optimizer, by its name in optax.
      lr: Its default learning rate.
      epochs: The default number of local epochs.
      prefix: Prepended to the keys of the clients' optimizer, where it moves something other than parameters.
    """

    source: Factory | str
    optimizer: str = "sgd"
    lr: float = 0.03
    epochs: int = 1
    prefix: str = ""

    @property
    def factory(self) -> Factory:
        return self.source if callable(self.source) else load(self.source)

    @property
    def signature(self) -> Signature:
        """The factory's options and its description; a factory of this package is not imported for them."""
        return signature_of(self.source)


def _entry(
    name: str, optimizer: str = "sgd", lr: float = 0.03, epochs: int = 1, *, prefix: str = ""
) -> Entry:
    """The entry of an algorithm of this package, whose module has its name."""
    return Entry(f"fedjax_masks.algorithms.{name}:{name}", optimizer, lr, epochs, prefix)


REGISTRY: dict[str, Entry] = {
    "adp": _entry("adp"),
    "ecofed": _entry("ecofed"),
    "fedavg": _entry("fedavg"),
    "feddst": _entry("feddst"),
    "fedgkt": _entry("fedgkt"),
    "fedmask": _entry("fedmask", "sgd", 100.0, 5, prefix="score_"),
    "fednova": _entry("fednova"),
    "fedpm": _entry("fedpm", "adam", 0.1, 3, prefix="score_"),
    "fedprox": _entry("fedprox"),
    "fedsgd": _entry("fedsgd", "sgd", 0.1),
    "fedskel": _entry("fedskel"),
    "heterofl": _entry("heterofl"),
    "lgfedavg": _entry("lgfedavg"),
    "lgl": _entry("lgl"),
    "local": _entry("local"),
    "lotteryfl": _entry("lotteryfl", "sgd", 0.03, 10),
    "mpfl": _entry("mpfl", "sgd", 0.1),
    "perfedavg": _entry("perfedavg"),
    "scaffold": _entry("scaffold"),
    "sign": _entry("sign"),
    "splitfed": _entry("splitfed"),
    "topk": _entry("topk"),
}


@cache
def _entry_points() -> dict[str, "EntryPoint"]:
    """The entry points of other packages, by the algorithm's name."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all algorithms, sorted."""
    return sorted({**_entry_points(), **REGISTRY})


def importable() -> list[str]:
    """The names of all algorithms but those whose packages cannot be imported, sorted."""

    def works(name: str) -> bool:
        try:
            return bool(get(name))
        except UserError:
            return False

    return list(filter(works, names()))


OptimizerName = Literal["sgd", "adam", "adamw", "yogi", "adagrad", "rmsprop"]


def get(name: str) -> Entry:
    """The entry of an algorithm.

    Raises:
      UserError: There is none of this name, or its package cannot be imported.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if name not in _entry_points():
        raise unknown_name("algorithm.name", name, names())
    return _entry_of(_entry_points()[name])


@cache
def _entry_of(point: "EntryPoint") -> Entry:
    """The entry of another package's algorithm.

    Raises:
      UserError: The package cannot be imported, or gives neither a factory nor an entry.
    """
    key = f"algorithm.name={point.name}"
    try:
        loaded: Any = point.load()
    except Exception as error:  # the package is not ours
        raise UserError(
            f"{key}: must be importable as {point.value} ({one_line(error)}); install its package again"
        ) from None
    entry = loaded if isinstance(loaded, Entry) else Entry(loaded)
    if not (callable(entry.source) or isinstance(entry.source, str)):
        raise UserError(f"{key}: must be a factory or an Entry; {point.value} is a {type(loaded).__name__}")
    return entry


def parameters(name: str) -> dict[str, Option]:
    """All options of an algorithm's factory, in their order.

    Raises:
      UserError: There is no such algorithm.
    """
    return get(name).signature.options


def optimizer_options(name: str) -> dict[str, Option]:
    """The keys of the clients' optimizer.

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
