"""Top-k: FedAvg of which only the largest tenth of every update goes up.

Sparsified SGD with memory (Stich, Cordonnier, Jaggi, NeurIPS 2018, arXiv 1809.07599, algorithm 1) around
local training: :func:`fedjax_masks.communication.codecs.top_k` on FedAvg's uploads. Magnitudes are
ranked in each array for itself; a value goes up with its index, in ``ceil(log2 n)`` bits.
"""

import optax

from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.core import training
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.options import PositiveShare
from fedjax_masks.models import Model
from fedjax_masks.transforms import compression


def topk(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    fraction: PositiveShare = 0.1,
    error_feedback: bool = True,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Federated averaging of sparse updates.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round.
      fraction: Share of every array that is sent, at least one element; 1 is FedAvg.
      error_feedback: Whether a client adds what it did not send to its next update; its state is then
        as large as the model.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      ValueError: ``fraction`` is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="iid")
      >>> algorithm = fm.topk(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), fraction=0.05)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_up"] < 0.07 * run.records[-1]["bytes_down"]
      True
    """
    average = fedavg(
        model,
        optimizer,
        epochs=epochs,
        batch_size=batch_size,
        server_optimizer=server_optimizer,
        augment=augment,
    )
    return compression.with_wire(average, up=compression.top_k(fraction, error_feedback=error_feedback))
