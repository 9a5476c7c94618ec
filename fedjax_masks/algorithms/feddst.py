"""FedDST: one sparse global model, whose mask clients readjust while they train it.

Bibikar, Vikalo, Wang, Chen: "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet
Learning Better", AAAI 2022, arXiv 2112.09824.

Only the weights under the mask are trained, and only they travel. Every few rounds, at the end of local
training, each client drops a share of them, the smallest, and grows as many where its gradient is largest.
The server takes for each weight the mean over the clients that hold it, and prunes the union of their masks
back to the target, by magnitude.

Densities of layers are those of Erdos-Renyi kernels, as Evci et al. 2020 (arXiv 1911.11134) scale them.
Where paper and program are silent or differ we choose: the gradient is the mean over all of the client's
examples; the share of weights to drop decays as in the paper (the program drops a constant one); of weights
of equal magnitude, as all are that have just been grown, the server keeps those that most examples stand
for; the server sends the mask, the first one included, to each client that lacks it.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.regrowth import drop_share, readjust, strongest, weight_counts
from fedjax_masks.communication.payload import Conditional, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import MaskedSum, masked, masked_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.masks import density, prune, top_count, weight_mask
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.options import Bounds, Count, Natural, Share, checks_options
from fedjax_masks.core.training import LocalTraining, Trainer, TrainingOptions, as_trainer, cross_entropy
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Kernel, Model, weighted_kernels

Mask = dict[str, jax.Array]
"""Bool arrays by layer, shaped like the kernels. A client's state is the last mask that it received."""

Sparsity = Annotated[float, Bounds(0, 1, below=True)]


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model; 0 where the mask is False.
      mask: The mask.
      version: ``int32[]``: the number of times that the mask has changed. A client's profile is the version
        of the mask that it has, -1 for none.
    """

    params: Params
    mask: Mask
    version: jax.Array


class Message(NamedTuple):
    """The server's message.

    Attributes:
      params: The weights under the mask.
      mask: The mask, to a client that lacks it.
    """

    params: Masked
    mask: Conditional


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      params: The trained weights under the client's new mask. Updates would not do: where a weight was
        dropped and grown again, rounding would leave a rest.
      mask: The new mask, in rounds that readjust it.
    """

    params: Masked
    mask: Conditional


@checks_options
def feddst(
    model: Model,
    trainer: LocalTraining,
    *,
    sparsity: Sparsity = 0.8,
    distribution: Literal["erk", "uniform"] = "erk",
    adjust_every: Count = 15,
    adjust_share: Share = 0.05,
    adjust_until: Natural = 200,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedDST.

    Args:
      model: The model; its first mask keeps the largest of its initial weights.
      trainer: Local training, or its optimizer.
      sparsity: Share of all kernels' weights that is pruned; biases and normalisation never are.
      distribution: The division of the pruned share among the layers: see :func:`weight_counts`.
      adjust_every: Clients readjust the mask in every so many-th round.
      adjust_share: Share of a layer's weights that they then replace, at first.
      adjust_until: That share decays by half a cosine, down to 0 in this round, from which on the mask
        stays.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model, which is sparse, and no personal ones.

    Raises:
      UserError: The model has no weighted layers, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> algorithm = fm.feddst(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), adjust_every=2)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=2)
      >>> round(run.records[-1]["density"], 2)
      0.2
    """
    trainer = as_trainer(trainer, training)
    fit = trainer.supervised(model.apply)
    layers = weighted_kernels(model)
    counts = weight_counts(layers, sparsity, distribution)
    kernels, whole_mask = partial(_weights, layers), partial(weight_mask, layers)

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        mask = {name: top_count(jnp.abs(w), counts[name]) for name, w in kernels(params).items()}
        server = Server(prune(params, whole_mask(params, mask)), mask, jnp.int32(0))
        clients = trees.replicate(jax.tree.map(jnp.ones_like, mask), task.num_clients)
        return State(server, clients, jnp.full(task.num_clients, -1, jnp.int32))

    def send(round: Round, server: Server, profile: jax.Array) -> Message:
        del round
        # The client knows the mask: it comes along, or has come with an earlier message.
        weights = Masked(server.params, whole_mask(server.params, server.mask))
        return Message(weights, Conditional(profile != server.version, server.mask))

    def train(round: Round, message: Message, client: Mask, data: ClientData) -> tuple[Mask, Upload, Info]:
        mask = trees.where(message.mask.flag, message.mask.tree, client)
        drop = drop_share(round.index, adjust_every, adjust_share, adjust_until)
        trainable = whole_mask(message.params.values, mask)
        params, info = fit(round, prune(message.params.values, trainable), data, update_mask=trainable)

        def readjusted() -> tuple[Mask, Params]:
            slopes = kernels(_gradient(model, trainer, round, params, data))
            new, old = _readjust_all(kernels(params), slopes, mask, counts, drop)
            return new, prune(params, whole_mask(params, old))

        new, params = jax.lax.cond(drop > 0, readjusted, lambda: (mask, params))
        moved = sum(jnp.sum(new[n] & ~m, dtype=jnp.int32) for n, m in mask.items())
        extra = {"density": density(new), "readjusted": moved / sum(counts.values())}
        # The server knows the mask: it is its own, or the one in the same upload.
        upload = Upload(Masked(params, whole_mask(params, new)), Conditional(drop > 0, new))
        return mask, upload, info._replace(extra=extra)

    def receive(
        round: Round, server: Server, profile: jax.Array, upload: Upload, weight: jax.Array
    ) -> tuple[jax.Array, MaskedSum]:
        del round, profile
        return server.version, masked(upload.params.values, upload.params.mask, weight)

    def merge(round: Round, server: Server, total: MaskedSum) -> tuple[Server, None]:
        del round
        params, support = masked_mean(total, server.params), kernels(total.weight)
        mask = {n: strongest(w, support[n], counts[n]) for n, w in kernels(params).items()}
        changed = jnp.any(jnp.stack([jnp.any(mask[n] != m) for n, m in server.mask.items()]))
        return Server(prune(params, whole_mask(params, mask)), mask, server.version + changed), None

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.params, x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})


def _weights(kernels: Iterable[Kernel], params: Params) -> dict[str, jax.Array]:
    return {kernel.name: trees.get(params, kernel.path) for kernel in kernels}


def _gradient(model: Model, trainer: Trainer, round: Round, params: Params, data: ClientData) -> Params:
    """The gradient over all examples times their number; the pass moves nothing and counts no steps."""
    data_loss = cross_entropy(model.apply)

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> tuple[jax.Array, Params]:
        grads = jax.grad(data_loss)(params, batch, key)
        return jnp.zeros(()), trees.scale(grads, jnp.sum(batch.real))

    still = replace(
        trainer, optimizer=optax.set_to_zero(), epochs=1, schedule=None, clip_norm=None, augment=None
    )
    _, _, total = still.summing(
        round, params, data, loss, account=lambda work: work._replace(steps=jnp.zeros_like(work.steps))
    )
    return total


def _readjust_all(
    weights: dict[str, jax.Array],
    slopes: dict[str, jax.Array],
    mask: Mask,
    counts: dict[str, int],
    drop: jax.Array,
) -> tuple[Mask, Mask]:
    """The results of :func:`readjust`, by layer."""
    pairs = {n: readjust(weights[n], slopes[n], m, counts[n], drop) for n, m in mask.items()}
    new, old = ({n: pair[i] for n, pair in pairs.items()} for i in range(2))
    return new, old
