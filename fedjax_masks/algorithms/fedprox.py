"""FedProx: FedAvg whose clients are held back near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys
2020, arXiv 1812.06127. A client minimises its loss plus ``mu / 2 * ||w - w_global||^2`` (eq. 2); all
else is FedAvg. Clients do the same number of epochs: the paper's partial work is a matter of devices.
"""

from typing import Unpack

import jax
import optax

from fedjax_masks.algorithms.fedavg import averaging
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.options import Decay, checks_options
from fedjax_masks.core.training import Fit, Gradient, LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model


@checks_options
def fedprox(
    model: Model,
    trainer: LocalTraining,
    *,
    mu: Decay = 0.01,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedProx.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer.
      mu: Factor of the proximal term; 0 is FedAvg.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones; the reported loss is that of the
      data alone.

    Raises:
      UserError: ``mu`` is negative.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.fedprox(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), mu=0.1)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    fit = as_trainer(trainer, training).supervised(model.apply)
    return averaging(model, proximal(fit, mu), server_optimizer=server_optimizer)


def proximal(fit: Fit, mu: float) -> Fit:
    """The training with the gradient of ``mu / 2 * ||w - w_start||^2`` added in every step."""
    return lambda *args, **options: fit(*args, gradient=pull(mu), **options)


def pull(mu: float) -> Gradient:
    """Adds the proximal term's gradient: ``mu * (w - w_start)``."""

    def gradient(grads: Params, params: Params, start: Params) -> Params:
        return jax.tree.map(lambda g, w, w0: g + mu * (w - w0), grads, params, start)

    return gradient
