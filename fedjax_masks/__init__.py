"""A vectorised JAX simulator for communication- and compute-efficient federated learning.

Public names are loaded at their first use (PEP 562), so that what needs no arrays starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_masks import models
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
    from fedjax_masks.algorithms.masked_fedavg import masked_fedavg
    from fedjax_masks.algorithms.mpfl import mpfl, mpfl_search
    from fedjax_masks.algorithms.perfedavg import perfedavg
    from fedjax_masks.algorithms.scaffold import scaffold
    from fedjax_masks.algorithms.sign import sign
    from fedjax_masks.algorithms.splitfed import splitfed
    from fedjax_masks.algorithms.topk import topk
    from fedjax_masks.core.algorithm import (
        ClientData,
        ClientIndex,
        FederatedAlgorithm,
        Info,
        Round,
        Schedule,
        Stack,
        State,
        Task,
        Work,
    )
    from fedjax_masks.core.training import Trainer
    from fedjax_masks.data import load_task
    from fedjax_masks.experiment.loop import simulate
    from fedjax_masks.experiment.run import Run
    from fedjax_masks.simulation import Plan, Storage, make_simulation

__version__ = "0.1.0"

__all__ = [
    "ClientData",
    "ClientIndex",
    "FederatedAlgorithm",
    "Info",
    "Plan",
    "Round",
    "Run",
    "Schedule",
    "Stack",
    "State",
    "Storage",
    "Task",
    "Trainer",
    "Work",
    "adp",
    "ecofed",
    "fedavg",
    "feddst",
    "fedgkt",
    "fedmask",
    "fednova",
    "fedpm",
    "fedprox",
    "fedsgd",
    "fedskel",
    "heterofl",
    "lgfedavg",
    "lgl",
    "load_task",
    "local",
    "lotteryfl",
    "make_simulation",
    "masked_fedavg",
    "models",
    "mpfl",
    "mpfl_search",
    "perfedavg",
    "scaffold",
    "sign",
    "simulate",
    "splitfed",
    "topk",
]

_OTHER_HOMES = {
    "core.algorithm": (
        *("ClientData", "ClientIndex", "FederatedAlgorithm", "Info", "Round", "Schedule"),
        *("Stack", "State", "Task", "Work"),
    ),
    "core.training": ("Trainer",),
    "data": ("load_task",),
    "experiment.loop": ("simulate",),
    "experiment.run": ("Run",),
    "algorithms.mpfl": ("mpfl_search",),
    "simulation": ("Plan", "Storage", "make_simulation"),
}
_HOMES = {name: home for home, names in _OTHER_HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("fedjax_masks.models")
    if name not in __all__:
        raise AttributeError(f"module 'fedjax_masks' has no attribute {name!r}")
    home = _HOMES.get(name, f"algorithms.{name}")  # an algorithm has the name of its file
    return getattr(import_module(f"fedjax_masks.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
