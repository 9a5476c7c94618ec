"""Top-k: FedAvg of which only the largest tenth of every update goes up.

Sparsified SGD with memory (Stich, Cordonnier, Jaggi, NeurIPS 2018, arXiv 1809.07599, algorithm 1) around
local training: :func:`fedjax_masks.communication.codecs.top_k` on FedAvg's uploads. Magnitudes are
ranked in each array for itself; a value goes up with its index, in ``ceil(log2 n)`` bits.
"""

from typing import Unpack

import optax

from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.communication import codecs
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.options import PositiveShare, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions
from fedjax_masks.models import Model
from fedjax_masks.transforms.compression import with_codecs


@checks_options
def topk(
    model: Model,
    trainer: LocalTraining,
    *,
    fraction: PositiveShare = 0.1,
    error_feedback: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Federated averaging of sparse updates.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer.
      fraction: Share of every array that is sent, at least one element; 1 is FedAvg.
      error_feedback: Whether a client adds what it did not send to its next update; its state is then
        as large as the model.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: ``fraction`` is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid")
      >>> algorithm = fm.topk(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), fraction=0.05)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_up"] < 0.07 * run.records[-1]["bytes_down"]
      True
    """
    average = fedavg(model, trainer, server_optimizer=server_optimizer, **training)
    return with_codecs(average, up=codecs.top_k(fraction, error_feedback=error_feedback))
