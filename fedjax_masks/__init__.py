"""fedjax_masks: a vectorised JAX simulator for communication-efficient federated learning."""

from fedjax_masks import models
from fedjax_masks.algorithm import (
    ClientData,
    ClientIndex,
    Cohort,
    FederatedAlgorithm,
    State,
    Task,
    Tiers,
)
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
from fedjax_masks.algorithms.lotteryfl import lotteryfl
from fedjax_masks.algorithms.masked_fedavg import masked_fedavg
from fedjax_masks.algorithms.mpfl import mpfl, mpfl_search
from fedjax_masks.algorithms.perfedavg import perfedavg
from fedjax_masks.algorithms.scaffold import scaffold
from fedjax_masks.algorithms.sign import sign
from fedjax_masks.algorithms.splitfed import splitfed
from fedjax_masks.algorithms.standalone import standalone
from fedjax_masks.algorithms.topk import topk
from fedjax_masks.data import load_task
from fedjax_masks.runner import Run, simulate
from fedjax_masks.simulation import Plan, Storage, make_simulation

__all__ = [
    "ClientData",
    "ClientIndex",
    "Cohort",
    "FederatedAlgorithm",
    "Plan",
    "Run",
    "State",
    "Storage",
    "Task",
    "Tiers",
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
    "standalone",
    "topk",
]

__version__ = "0.1.0"
