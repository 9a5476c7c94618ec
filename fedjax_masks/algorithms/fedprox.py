"""FedProx: FedAvg whose clients are held back near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys
2020, arXiv 1812.06127. A client minimises its loss plus ``mu / 2 * ||w - w_global||^2`` (eq. 2); all
else is FedAvg. Clients do the same number of epochs: the paper's partial work is a matter of devices.
"""

from functools import partial

import optax

from fedjax_masks.algorithms.fedavg import averaging
from fedjax_masks.core import training
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.options import Decay
from fedjax_masks.models import Model


def fedprox(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    mu: Decay = 0.01,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedProx.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round.
      mu: Factor of the proximal term; 0 is FedAvg.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones; the reported loss is that of the
      data alone.

    Raises:
      ValueError: ``mu`` is negative.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.fedprox(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), mu=0.1)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    if not mu >= 0:
        raise ValueError(f"mu={mu}: accepted is at least 0")
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)
    return averaging(model, partial(fit, proximal=mu), server_optimizer=server_optimizer)
