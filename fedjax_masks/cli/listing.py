"""The lists of ``fedjax-masks list``: names, each with a line of help. No list imports jax."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import describe

_PARAMETER = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)
_SENTENCE = re.compile(r"\. (?=[A-Z])")
_MARKUP = re.compile(r":\w+:`~?([^`]+)`|``")
_MAX_NAMES = 5  # algorithms or models in a line
_SEPARATE_LISTS = {"algorithm.name", "model.name"}
_OPTIMIZER_HELP = {
    "optimizer": "Clients' optimizer",
    "lr": "Learning rate of the clients' optimizer",
    "momentum": "Momentum of the clients' optimizer, for sgd and rmsprop",
    "weight_decay": "Weight decay of the clients' optimizer",
}


def algorithms() -> dict[str, str]:
    """Algorithms."""
    from fedjax_masks.algorithms.registry import get, names

    def line(name: str) -> str:
        try:
            return get(name).signature.summary
        except UserError as error:  # a package that is broken hides no other
            return str(error)

    return {name: line(name) for name in names()}


def models() -> dict[str, str]:
    """Models."""
    from fedjax_masks.models.registry import MODELS, model_signature

    return {name: model_signature(name).doc.partition("\n")[0] for name in MODELS}


def datasets() -> dict[str, str]:
    """Data sets."""
    from fedjax_masks.data import DATASETS

    return dict(DATASETS)


def partitions() -> dict[str, str]:
    """Partitions and their modifiers, by their text form."""
    from fedjax_masks.data import MODIFIERS, PARTITIONS

    return {entry.usage: entry.help for entry in [*PARTITIONS.values(), *MODIFIERS.values()]}


def devices() -> dict[str, str]:
    """Devices and links."""
    from fedjax_masks.costs.devices import DEVICES, LINKS

    profiles = {name: f"{d.flops / 1e9:g} GFLOP/s, {d.memory / 1e9:g} GB/s" for name, d in DEVICES.items()}
    links = {f"@{name}": f"{link.up / 1e6:g} Mbit/s, {link.latency:g} s" for name, link in LINKS.items()}
    return profiles | links


def wires() -> dict[str, str]:
    """Compression, by its text form."""
    from fedjax_masks.communication.catalog import CODECS

    return dict(CODECS)


def workloads() -> dict[str, str]:
    """Workloads of the benchmark."""
    from fedjax_masks.benchmarks import WORKLOADS

    return {name: workload.text for name, workload in WORKLOADS.items()}


def keys() -> dict[str, str]:
    """Keys of the configuration, with their meaning, type and default."""
    from fedjax_masks.algorithms.registry import importable
    from fedjax_masks.experiment import config
    from fedjax_masks.models.registry import MODELS

    variants: dict[str, _Variants] = {}
    sections = config.sections().items()
    shared = {key: text for prefix, section in sections for key, text in _help(section.__doc__, prefix)}
    algorithms = importable()
    for name in algorithms:
        options = config.keys(name, "mlp").items()
        other_keys = {key: option for key, option in options if not key.startswith("model.")}
        _add(variants, name, shared | _algorithm_help(name), other_keys)
    for name in MODELS:
        options = config.keys("fedavg", name).items()
        model_keys = {key: option for key, option in options if key.startswith("model.")}
        _add(variants, name, _model_help(name), model_keys)
    order = [key for key in sorted(variants, key=_place) if key not in _SEPARATE_LISTS]
    return {key: _text(variants[key], len(algorithms)) for key in order}


def keys_of(algorithm: str | None = None, model: str | None = None) -> dict[str, str]:
    """The keys of one algorithm or one model, with their meaning, type and default.

    Args:
      algorithm: The algorithm; None for the model's keys alone.
      model: The model; None for the algorithm's keys alone.

    Raises:
      UserError: There is none of this name.
    """
    from fedjax_masks.experiment import config

    options = config.keys(algorithm or "fedavg", model or "mlp")
    prefixes = tuple(f"{kind}." for kind, name in (("algorithm", algorithm), ("model", model)) if name)
    texts = (_algorithm_help(algorithm) if algorithm else {}) | (_model_help(model) if model else {})
    variants: dict[str, _Variants] = {}
    selection = {key: option for key, option in options.items() if key.startswith(prefixes)}
    _add(variants, "", texts, selection)
    return {key: _text(variant, 1) for key, variant in variants.items() if key not in _SEPARATE_LISTS}


def _algorithm_help(name: str) -> dict[str, str]:
    """The help for an algorithm's keys."""
    from fedjax_masks.algorithms.registry import get, optimizer_options

    prefix = get(name).prefix
    optimizer = {
        f"algorithm.{key}": _OPTIMIZER_HELP[key.removeprefix(prefix)] for key in optimizer_options(name)
    }
    return dict(_help(get(name).signature.doc, "algorithm.")) | optimizer


def _model_help(name: str) -> dict[str, str]:
    """The help for a model's keys."""
    from fedjax_masks.models.registry import model_signature

    return dict(_help(model_signature(name).doc, "model."))


_Variants = dict[str, dict[Any, list[str]]]
"""The texts on a key, the defaults with each text, and the algorithms or models with each default."""


def _add(
    variants: dict[str, _Variants], name: str, texts: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Adds the keys of one algorithm or model."""
    for key, option in options.items():
        text = "; ".join(filter(None, (texts.get(key), describe(option.annotation))))
        default = tuple(option.default) if isinstance(option.default, list) else option.default
        variants.setdefault(key, {}).setdefault(text, {}).setdefault(default, []).append(name)


def _place(key: str) -> tuple[bool, bool]:
    """The order of keys: without a section first, of algorithms and models last."""
    return key.startswith(("algorithm.", "model.")), "." in key


def _text(variants: _Variants, number: int) -> str:
    """The texts and defaults of a key, with the names of their algorithms or models.

    Args:
      variants: The texts, defaults and names.
      number: The number of all algorithms; a default that all of them share is shown without names.

    >>> _text({"Rounds": {50: ["a", "b"]}}, 2), _text({"Rounds": {50: ["a"], 9: ["b"]}}, 2)
    ('Rounds; default 50', 'Rounds; default 50 (a), 9 (b)')
    """
    parts = []
    for text, defaults in variants.items():
        rarest_first = sorted(defaults.items(), key=lambda item: len(item[1]))
        texts = [_default_text(default) + _names_text(names, number) for default, names in rarest_first]
        parts.append(f"{text}; default {', '.join(texts)}")
    return " | ".join(parts)


def _names_text(names: list[str], number: int) -> str:
    if len(names) == number:
        return ""
    return f" ({', '.join(names)})" if len(names) <= _MAX_NAMES else " (most)"


def _default_text(default: object) -> str:
    """A default in the form of the command line."""
    if default is inspect.Parameter.empty:
        return "none, must be given"
    if isinstance(default, tuple):
        return ",".join(map(_default_text, default))
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _help(doc: str | None, prefix: str) -> list[tuple[str, str]]:
    r"""The first sentence on each parameter or attribute in a docstring.

    >>> _help("A layer.\n\n    Attributes:\n      width: Outputs. Even ones are faster.\n    ", "model.")
    [('model.width', 'Outputs')]
    """
    plain = _MARKUP.sub(r"\1", inspect.cleandoc(doc or ""))
    texts = ((name, " ".join(text.split())) for name, text in _PARAMETER.findall(plain))
    return [(prefix + name, _SENTENCE.split(text, maxsplit=1)[0].rstrip(".,")) for name, text in texts]


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
