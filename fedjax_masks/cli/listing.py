"""What ``fedjax-masks list`` tells: what can be named, and a line on each."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_masks.core.options import describe

_PARAMETER = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)
_SENTENCE = re.compile(r"\. (?=[A-Z])")
_MARKUP = re.compile(r":\w+:`~?([^`]+)`|``")
_FEW = 5  # names of algorithms in a line


def algorithms() -> dict[str, str]:
    """Algorithms."""
    from fedjax_masks.algorithms.registry import REGISTRY

    return {name: _first_line(sys.modules[entry.factory.__module__]) for name, entry in REGISTRY.items()}


def models() -> dict[str, str]:
    """Models."""
    from fedjax_masks.models import MODELS

    return {name: _first_line(factory) for name, factory in MODELS.items()}


def datasets() -> dict[str, str]:
    """Data sets."""
    from fedjax_masks.data import DATASETS

    return dict(DATASETS)


def partitions() -> dict[str, str]:
    """Partitions and their modifiers, as they are written."""
    from fedjax_masks.data import MODIFIERS, PARTITIONS

    return {entry.usage: entry.help for entry in [*PARTITIONS.values(), *MODIFIERS.values()]}


def devices() -> dict[str, str]:
    """Devices and links."""
    from fedjax_masks.costs.devices import DEVICES, LINKS

    profiles = {name: f"{d.flops / 1e9:g} GFLOP/s, {d.memory / 1e9:g} GB/s" for name, d in DEVICES.items()}
    links = {f"@{name}": f"{link.up / 1e6:g} Mbit/s, {link.latency:g} s" for name, link in LINKS.items()}
    return profiles | links


def wires() -> dict[str, str]:
    """Compression, as it is written."""
    from fedjax_masks.transforms.compression import WIRES

    return {usage: text for usage, (text, _) in WIRES.items()}


def workloads() -> dict[str, str]:
    """Workloads of the benchmark."""
    from fedjax_masks.benchmarks import WORKLOADS

    return {name: workload.text for name, workload in WORKLOADS.items()}


def keys() -> dict[str, str]:
    """Keys of the configuration: what they mean and accept, and their defaults."""
    from fedjax_masks.algorithms.registry import REGISTRY, optimizer_options
    from fedjax_masks.experiment import config
    from fedjax_masks.models import MODELS

    found: dict[str, _Variants] = {}
    shared = {key: text for name, section in config.sections().items() for key, text in _told(section, name)}
    for name, entry in REGISTRY.items():
        told = shared | dict(_told(entry.factory, "algorithm."))
        told |= {f"algorithm.{key}": "Of the clients' optimiser" for key in optimizer_options(name)}
        options = config.keys(name, "mlp").items()
        _note(found, name, told, {k: option for k, option in options if not k.startswith("model.")})
    for name, factory in MODELS.items():
        options = config.keys("fedavg", name).items()
        told = dict(_told(factory, "model."))
        _note(found, name, told, {k: option for k, option in options if k.startswith("model.")})
    names = ("algorithm.name", "model.name")  # which are lists of their own
    return {key: _shown(found[key], len(REGISTRY)) for key in sorted(found, key=_place) if key not in names}


def keys_of(algorithm: str | None = None, model: str | None = None) -> dict[str, str]:
    """The keys that only an algorithm or a model has: what they mean and accept, and their defaults there.

    Args:
      algorithm: The algorithm; none for the model's keys alone.
      model: The model; none for the algorithm's keys alone.

    Raises:
      UserError: There is none of this name.
    """
    from fedjax_masks.algorithms.registry import get, optimizer_options
    from fedjax_masks.experiment import config
    from fedjax_masks.models import MODELS

    options, told = config.keys(algorithm or "fedavg", model or "mlp"), {}
    wanted = [f"{kind}." for kind, name in (("algorithm", algorithm), ("model", model)) if name]
    if algorithm:
        told |= dict(_told(get(algorithm).factory, "algorithm."))
        told |= {f"algorithm.{key}": "Of the clients' optimiser" for key in optimizer_options(algorithm)}
    if model:
        told |= dict(_told(MODELS[model], "model."))
    found: dict[str, _Variants] = {}
    names = ("algorithm.name", "model.name")
    chosen = {k: o for k, o in options.items() if k.startswith(tuple(wanted)) and k not in names}
    _note(found, "", told, chosen)
    return {key: _shown(variants, 1) for key, variants in found.items()}


_Variants = dict[str, dict[Any, list[str]]]  # what is said of a key, its default, and in which cases


def _note(
    found: dict[str, _Variants], name: str, told: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Adds what one algorithm or model says of its keys."""
    for key, option in options.items():
        text = "; ".join(filter(None, (told.get(key), describe(option.annotation))))
        default = tuple(option.default) if isinstance(option.default, list) else option.default
        found.setdefault(key, {}).setdefault(text, {}).setdefault(default, []).append(name)


def _place(key: str) -> tuple[bool, bool]:
    """Keys without a section first, those of algorithms and models last."""
    return key.startswith(("algorithm.", "model.")), "." in key


def _shown(variants: _Variants, everyone: int) -> str:
    """What is said of a key, with the names of those of which it is true.

    >>> _shown({"Rounds": {50: ["a", "b"]}}, 2), _shown({"Rounds": {50: ["a"], 9: ["b"]}}, 2)
    ('Rounds; default 50', 'Rounds; default 50 (a), 9 (b)')
    """
    parts = []
    for text, defaults in variants.items():
        rarest_first = sorted(defaults.items(), key=lambda item: len(item[1]))
        shown = [_written(default) + _of(names, everyone) for default, names in rarest_first]
        parts.append(f"{text}; default {', '.join(shown)}")
    return " | ".join(parts)


def _of(names: list[str], everyone: int) -> str:
    if len(names) == everyone:
        return ""
    return f" ({', '.join(names)})" if len(names) <= _FEW else " (most)"


def _written(default: Any) -> str:
    """A default as a person would write it."""
    if default is inspect.Parameter.empty:
        return "none, must be given"
    if isinstance(default, tuple):
        return ",".join(map(_written, default))
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _told(thing: Any, prefix: str) -> list[tuple[str, str]]:
    """The first sentence on each parameter or attribute in a docstring.

    >>> _told(lambda: None, "x.")
    []
    """
    doc = _MARKUP.sub(r"\1", inspect.getdoc(thing) or "")
    found = ((name, " ".join(text.split())) for name, text in _PARAMETER.findall(doc))
    return [(prefix + name, _SENTENCE.split(text, maxsplit=1)[0].rstrip(".,")) for name, text in found]


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "keys": keys,
    "algorithms": algorithms,
    "models": models,
    "datasets": datasets,
    "partitions": partitions,
    "devices": devices,
    "wires": wires,
    "workloads": workloads,
}
