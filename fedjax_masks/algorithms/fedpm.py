"""FedPM: clients learn the probability to keep each weight of a frozen random network.

Isik, Pase, Gunduz, Weissman, Zorzi: "Sparse Random Networks for Communication-Efficient Federated
Learning", ICLR 2023, arXiv 2209.15328.

All devices hold the same frozen weights, of one magnitude per layer. The server has a probability
for each of them. A device trains the probabilities' logits, drawing a new mask for every minibatch. Then it
draws one last mask and uploads it, entropy-coded: at most about a bit per weight. The masks are Bernoulli
trials: under a uniform Beta prior, the most likely probability is the share of ones among all masks since the
prior was last reset.

That share is all that the server knows, so it sends the count: 8 bits per weight, exact for up to 255 masks.
Where the paper is silent we choose: biases are frozen and unmasked; every probability starts at one
half, which needs no message; a device keeps probabilities away from 0 and 1, whose logits are infinite
(as the authors' program does); the global model is one mask drawn by the server.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication import codecs
from fedjax_masks.communication.payload import Conditional, Installed, Quantized, shape_only
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import Votes, vote
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.masks import density, mask_params
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.options import Bounds, Count, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer, mean_cross_entropy
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, weighted_kernels
from fedjax_masks.transforms.compression import with_codecs

Mask = dict[str, jax.Array]
Probability = dict[str, jax.Array]
Scores = dict[str, jax.Array]

_BITS = 8  # of a count, on its way to a device


class Server(NamedTuple):
    """The server's state; dicts are keyed by the layer's name.

    Attributes:
      weights: The network's parameters, which never change.
      ones: int32, shaped like the kernels: ones among the masks since the last reset.
      masks: ``int32[]``: the number of these masks.
      mask: bool, shaped like the kernels: drawn from the probabilities that they stand for.
    """

    weights: Params
    ones: dict[str, jax.Array]
    masks: jax.Array
    mask: Mask


class Message(NamedTuple):
    """The server's message.

    Attributes:
      weights: The frozen parameters.
      counts: :class:`~fedjax_masks.communication.payload.Quantized` shares of ones by layer, once there is a
        mask.
    """

    weights: Installed
    counts: Conditional


@checks_options
def fedpm(
    model: Model,
    trainer: LocalTraining,
    *,
    reset: Count = 1,
    margin: Annotated[float, Bounds(0, 0.5, above=True, below=True)] = 0.01,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedPM.

    Args:
      model: The architecture; the signs of its initial kernels are those of the frozen weights,
        whose magnitude is ``sqrt(2 / fan_in)``.
      trainer: Local training of the scores, or its optimizer.
      reset: The prior is reset every so many rounds; in the paper, number of clients over cohort.
      margin: A device starts from probabilities in ``[margin, 1 - margin]``.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model, of one mask, and no personal ones. Uploads are entropy-coded
      masks.

    Raises:
      UserError: The model has no weighted layers, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.fedpm(fm.models.mlp(task, hidden=(16,)), optax.adam(0.1), epochs=2)
      >>> record = fm.simulate(algorithm, task, rounds=1, cohort=2).records[-1]
      >>> 0.3 < record["density"] < 0.7
      True
    """
    trainer = as_trainer(trainer, training)
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}

    def apply(weights: Params, mask: PyTree, x: jax.Array) -> jax.Array:
        return model.apply(mask_params(model.kernels, weights, mask), x)

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        params_key, mask_key = jax.random.split(key)
        weights = signed_constants(model.init(params_key), layers)
        ones = {name: jnp.zeros(trees.get(weights, path).shape, jnp.int32) for name, path in layers.items()}
        none = jnp.zeros((), jnp.int32)
        mask = draw(mask_key, probability_of(ones, none), jnp.less)
        return State(Server(weights, ones, none, mask))

    def send(round: Round, server: Server, profile: PyTree) -> Message:
        del round, profile
        shares = quantized_shares(server.ones, server.masks)
        return Message(Installed(server.weights), Conditional(server.masks > 0, shares))

    def train(round: Round, message: Message, client: PyTree, data: ClientData) -> tuple[PyTree, Mask, Info]:
        order_key, step_key, upload_key = jax.random.split(round.key, 3)
        weights, start = message.weights.tree, first_scores(message.counts, margin)

        def loss(scores: Scores, batch: Batch, key: chex.PRNGKey) -> jax.Array:
            del key
            mask_key = jax.random.fold_in(step_key, batch.step)
            mask = draw(mask_key, jax.tree.map(jax.nn.sigmoid, scores), straight_through_less)
            return mean_cross_entropy(apply(weights, mask, batch.inputs), batch)

        scores, info = trainer(round._replace(key=order_key), start, data, loss)
        mask = draw(upload_key, jax.tree.map(jax.nn.sigmoid, scores), jnp.less)
        return client, mask, info._replace(extra={"density": density(mask)})

    def receive(
        round: Round, server: Server, profile: PyTree, upload: Mask, weight: jax.Array
    ) -> tuple[PyTree, Votes]:
        del round, server, weight  # all masks count alike
        everywhere = {name: jnp.ones((1,) * bit.ndim, bool) for name, bit in upload.items()}
        return profile, vote(upload, everywhere)

    def merge(round: Round, server: Server, total: Votes) -> tuple[Server, None]:
        number = jax.tree.leaves(total.owners)[0].ravel()[0]
        memory = jnp.where(round.index % reset == 0, 0, 1)
        ones = {name: memory * old + total.ones[name] for name, old in server.ones.items()}
        masks = memory * server.masks + number
        mask = draw(round.key, probability_of(ones, masks), jnp.less)
        return server._replace(ones=ones, masks=masks, mask=mask), None

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return apply(server.weights, server.mask, x)

    algorithm = FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})
    return with_codecs(algorithm, up=codecs.entropy())


def signed_constants(params: Params, layers: Mapping[str, tuple[str, ...]]) -> Params:
    """A network's parameters with kernels of one magnitude, ``sqrt(2 / fan_in)``, and of their old signs."""
    for path in layers.values():
        kernel = trees.get(params, path)
        magnitude = jnp.full_like(kernel, (2.0 * kernel.shape[-1] / kernel.size) ** 0.5)
        params = trees.put(params, path, jnp.where(kernel < 0, -magnitude, magnitude))
    return params


def quantized_shares(ones: dict[str, jax.Array], masks: jax.Array) -> dict[str, Quantized]:
    """Shares of ones among masks in 8 bits, exact for up to 255 masks.

    Args:
      ones: int32 arrays by layer: the number of ones.
      masks: ``int32[]``: the number of masks.
    """
    levels = jnp.clip(masks, 1, 2**_BITS - 1).astype(jnp.float32)
    factor = levels / jnp.maximum(masks, 1)
    codes = {name: jnp.round(count * factor).astype(jnp.uint8) for name, count in ones.items()}
    like = shape_only((_BITS,), jnp.float32)
    return {name: Quantized(code, 1 / levels, like) for name, code in codes.items()}


def first_scores(counts: Conditional, margin: float) -> Scores:
    """The logits of the received probabilities, which are kept ``margin`` away from 0 and 1."""
    # Without counts, no mask has ever been uploaded.
    received = {n: jnp.where(counts.flag, part.codes * part.scale, 0.5) for n, part in counts.tree.items()}
    return {n: jax.scipy.special.logit(jnp.clip(p, margin, 1 - margin)) for n, p in received.items()}


def probability_of(ones: dict[str, jax.Array], masks: jax.Array) -> Probability:
    """The mode of the posterior ``Beta(1 + ones, 1 + masks - ones)``; one half before the first mask.

    >>> probability_of({"layer": jnp.array([0, 1, 4])}, jnp.array(4))["layer"].tolist()
    [0.0, 0.25, 1.0]
    """
    number = jnp.maximum(masks, 1).astype(jnp.float32)
    return {name: jnp.where(masks > 0, count / number, 0.5) for name, count in ones.items()}


@jax.custom_jvp
def straight_through_less(draws: jax.Array, probability: jax.Array) -> jax.Array:
    """``[draws < probability]`` as floats, differentiated as if it were ``probability`` (eq. 3).

    >>> float(jax.grad(straight_through_less, argnums=1)(0.3, 0.7))
    1.0
    """
    return jnp.less(draws, probability).astype(jnp.result_type(probability))


@straight_through_less.defjvp
def _straight_through_less_jvp(primals, tangents):
    return straight_through_less(*primals), tangents[1]


def draw(key: chex.PRNGKey, probability: Probability, less: PyTree) -> dict[str, jax.Array]:
    """One Bernoulli trial per weight: ``less(uniform draw, probability)``."""
    keys = jax.random.split(key, len(probability))
    return {
        name: less(jax.random.uniform(k, p.shape, p.dtype), p)
        for k, (name, p) in zip(keys, sorted(probability.items()))
    }
