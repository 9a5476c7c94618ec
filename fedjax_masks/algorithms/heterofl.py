"""HeteroFL: every device trains the first channels of the global model, as many as it can afford.

Diao, Ding, Tarokh: "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients", ICLR 2021, arXiv 2010.02264, algorithm 1. A client of ratio r trains the model whose hidden layers
have the first ``ceil(r n)`` of their ``n`` outputs: a smaller ordinary model, computed as such. Slices are
nested; each parameter becomes the mean of its owners' (eq. 2 to 4), here weighted by their examples.

The layers of a slice have fewer inputs than their weights were drawn for. The paper's scaler makes up for
it: the output of a slice's hidden layer is divided, here by the root of the ratio, which preserves the
variance of fresh weights from layer to layer. The paper divides by the ratio itself, which enlarges the
variance; there, batch normalisation follows and cancels either factor. Our batch normalisation has no running
statistics, which is the paper's static one.

Under label skew a client trains and sends, of the last layer, only its own classes, and the logits of all
others are 0 in its loss and in its predictions: the paper's masked cross-entropy.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.algorithms import fedavg
from fedjax_masks.algorithms.ratios import ratio_tiers
from fedjax_masks.communication.payload import AlreadyKnown, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import MaskedSum, masked_mean, weighted
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, Schedule, State, Task
from fedjax_masks.core.masks import prune
from fedjax_masks.core.options import PositiveShare
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model, weighted_kernels
from fedjax_masks.models.slicing import ownership, put_back, scaled, slice_mask, sliced, take


class Client(NamedTuple):
    """A client's state.

    Attributes:
      tier: ``int32[]``. A client's profile is its tier, too: its device announced it.
      classes: ``bool[num_classes]``: those that it has examples of; all until it first takes part.
    """

    tier: jax.Array
    classes: jax.Array


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: The update of its slice, in the place that the slice has in the whole model.
      classes: ``bool[num_classes]``: those of which the last layer has an update; known where it is all.
    """

    update: Masked
    classes: jax.Array | AlreadyKnown


def heterofl(
    model: Model,
    trainer: LocalTraining,
    *,
    ratios: Sequence[PositiveShare] | Literal["devices"] = (1.0, 0.5, 0.25, 0.125, 0.0625),
    capability: np.ndarray | None = None,
    scaler: bool = True,
    own_classes: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """HeteroFL.

    Args:
      model: The widest model.
      trainer: Local training, or its optimizer.
      ratios: Share of every hidden layer's outputs, in (0, 1]; client ``i`` has
        ``ratios[i % len(ratios)]``. Each is a program of its own. ``"devices"``: as capable as its
        device is, see :func:`~fedjax_masks.algorithms.ratios.ratios_of`.
      capability: ``float[num_clients]``, in any unit, for ``"devices"``.
      scaler: Whether a slice makes up for its missing channels.
      own_classes: Whether a client leaves the classes alone of which it has no examples.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its server's state is that of :func:`~fedjax_masks.algorithms.fedavg.fedavg`, whose
      model is the widest. A client's personal model is its slice of the global one.

    Raises:
      UserError: The model has no weighted layers, a ratio is out of range, or the ratios are those of
        devices, and there are none.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid")
      >>> algorithm = fm.heterofl(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), ratios=(0.5,))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_down"]  # of three clients, (64 + 1) * 8 + (8 + 1) * 10 floats each
      7320
    """
    *_, last = weighted_kernels(model)
    ratios, tier_of = ratio_tiers(ratios, capability)
    trainer = as_trainer(trainer, training)
    models = [sliced(model, ratio) for ratio in ratios]
    applies = [scaled(m, ratio) if scaler else m.apply for m, ratio in zip(models, ratios)]
    slices, everything = ownership(model, models), np.ones(last.outputs, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    average = fedavg.averaging(model, trainer.supervised(model.apply), server_optimizer=server_optimizer)

    def apply(tier: int, classes: jax.Array, params: Params, x: jax.Array) -> jax.Array:
        return jnp.where(classes, applies[tier](params, x), 0.0)

    def init(key: chex.PRNGKey, task: Task) -> State:
        tiers = jnp.asarray(tier_of(np.arange(task.num_clients)), jnp.int32)
        classes = trees.replicate(jnp.asarray(everything), task.num_clients)
        return State(average.init(key, task).server, Client(tiers, classes), tiers)

    def send(round: Round, server: fedavg.Server, profile: jax.Array) -> Masked:
        del round
        # The client knows the mask: it depends on its tier alone.
        return Masked(server.params, slice_mask(model, slices, profile, everything))

    def train(round: Round, message: Masked, client: Client, data: ClientData) -> tuple[Client, Upload, Info]:
        classes = present(data, last.outputs) if own_classes else client.classes

        def train_slice(params: Params, tier: int) -> tuple[Params, Info]:
            start = take(params, slices, tier)
            fit = trainer.supervised(lambda params, x: apply(tier, classes, params, x))
            params, info = fit(round, start, data)
            return put_back(trees.sub(params, start), shapes, slices, tier), info

        branches = [lambda params, t=t: train_slice(params, t) for t in range(len(ratios))]
        update, info = jax.lax.switch(data.tier, branches, message.values)
        mask = slice_mask(model, slices, data.tier, classes)
        share = jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(mask))) / trees.size(shapes))
        # The server knows the mask: it follows from the tier and the classes beside it.
        upload = Upload(Masked(update, mask), classes if own_classes else AlreadyKnown(classes))
        return client._replace(classes=classes), upload, info._replace(extra={"density": share})

    def receive(
        round: Round, server: fedavg.Server, profile: jax.Array, upload: Upload, weight: jax.Array
    ) -> tuple[jax.Array, MaskedSum]:
        del round, server
        update = trees.scale(prune(upload.update.values, upload.update.mask), weight)
        return profile, MaskedSum(update, trees.scale(upload.update.mask, weight))

    def merge(round: Round, server: fedavg.Server, total: MaskedSum) -> tuple[fedavg.Server, Info | None]:
        update = masked_mean(total, trees.zeros_like(server.params))
        return average.merge(round, server, weighted(update, jnp.ones(())))

    def personal(server: fedavg.Server, client: Client, x: jax.Array) -> jax.Array:
        branches = [
            lambda params, x, t=t: apply(t, client.classes, take(params, slices, t), x)
            for t in range(len(ratios))
        ]
        return jax.lax.switch(client.tier, branches, server.params, x)

    models_by_name = {**average.predict, "personal": personal}
    schedule = Schedule(num_tiers=len(ratios), tier_of=tier_of)
    return FederatedAlgorithm(init, send, train, receive, merge, models_by_name, schedule)


def present(data: ClientData, num_classes: int) -> jax.Array:
    """``bool[num_classes]``: the classes that a client has examples of."""
    real = jnp.arange(len(data.rows)) < data.size
    return jnp.zeros(num_classes, bool).at[data.labels[data.rows]].max(real)
