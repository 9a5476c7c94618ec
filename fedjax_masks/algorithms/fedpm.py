"""FedPM: a global random network, of which clients learn which weights to keep, and how surely.

Isik, Pase, Gunduz, Weissman, Zorzi: "Sparse Random Networks for Communication-Efficient Federated
Learning", ICLR 2023, arXiv 2209.15328.

All devices hold the same frozen weights, of one magnitude per layer. The server has a probability
for each of them. A device trains the probabilities' logits, drawing a new mask for every minibatch, and
uploads one last mask that it draws: at most about a bit per weight. The masks are Bernoulli trials; under a
uniform Beta prior, the most likely probability is the share of ones among all masks since the prior
was last reset.

That share is all that the server knows, so it sends the count: 8 bits per weight, exact for up to 255 masks.
Where the paper is silent we choose: biases are frozen and unmasked; every probability starts at one
half, which is sent to nobody; a device keeps probabilities away from 0 and 1, whose logits are infinite
(as the authors' program does); the global model is one mask drawn by the server.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.communication.payload import Encoded, Quantized, When, shape_only
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import Votes, vote
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.masks import density, mask_params
from fedjax_masks.core.options import Count
from fedjax_masks.models import Model, weighted_kernels

Mask = dict[str, jax.Array]
Probability = dict[str, jax.Array]

_BITS = 8  # of a count, on its way to a device


class Server(NamedTuple):
    """The server's state; dicts are keyed by the layer's name.

    Attributes:
      ones: int32, shaped like the kernels: ones among the masks since the last reset.
      masks: ``int32[]``: how many masks that were.
      mask: bool, shaped like the kernels: drawn from what they say.
      round: ``int32[]``: rounds done.
    """

    ones: dict[str, jax.Array]
    masks: jax.Array
    mask: Mask
    round: jax.Array


class Learnt(NamedTuple):
    """What a device trains.

    Attributes:
      scores: float32, shaped like the kernels: the probabilities' logits.
      step: ``float32[]``: steps done; each draws a mask of its own.
    """

    scores: dict[str, jax.Array]
    step: jax.Array


def fedpm(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 3,
    batch_size: int = 10,
    reset: Count = 1,
    margin: float = 0.01,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedPM.

    Args:
      model: The architecture; the signs of its initial kernels are those of the frozen weights,
        whose magnitude is ``sqrt(2 / fan_in)``.
      optimizer: The optimiser of the scores, fresh in every round.
      epochs: Local epochs on the scores per round.
      batch_size: Examples per local step.
      reset: The prior is reset every so many rounds; in the paper, number of clients over cohort.
      margin: A device starts from probabilities in ``[margin, 1 - margin]``.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model, of one mask, and no personal ones.

    Raises:
      UserError: The model has no weighted layers.
      ValueError: ``margin`` or ``reset`` is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedpm(fm.models.mlp(task, hidden=(32,)), optax.adam(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=4)
      >>> 0.3 < run.records[-1]["density"] < 0.7
      True
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"margin={margin}: accepted is above 0 and below 0.5")
    if reset < 1:
        raise ValueError(f"reset={reset}: accepted is 1 or more")
    counting = _counting(optimizer)
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}

    def apply(common: Params, mask: Any, x: jax.Array) -> jax.Array:
        return model.apply(mask_params(model.kernels, common, mask), x)

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        params_key, mask_key = jax.random.split(key)
        params = model.init(params_key)
        for path in layers.values():
            kernel = trees.get(params, path)
            magnitude = jnp.full_like(kernel, (2.0 * kernel.shape[-1] / kernel.size) ** 0.5)
            params = trees.put(params, path, jnp.where(kernel < 0, -magnitude, magnitude))
        ones = {name: jnp.zeros(trees.get(params, path).shape, jnp.int32) for name, path in layers.items()}
        none = jnp.zeros((), jnp.int32)
        mask = draw(mask_key, probability_of(ones, none), straight_through_less)
        return State(params, Server(ones, none, {n: m > 0 for n, m in mask.items()}, none), ())

    def send(server: Server, client_id: jax.Array) -> When:
        del client_id
        levels = jnp.clip(server.masks, 1, 2**_BITS - 1).astype(jnp.float32)
        factor = levels / jnp.maximum(server.masks, 1)
        codes = {n: jnp.round(count * factor).astype(jnp.uint8) for n, count in server.ones.items()}
        like = shape_only((_BITS,), jnp.float32)
        counts = {name: Quantized(code, 1 / levels, like) for name, code in codes.items()}
        return When(server.masks > 0, counts)

    def train(
        key: chex.PRNGKey, common: Params, message: When, client: Any, data: ClientData
    ) -> tuple[Any, Encoded, Metrics]:
        order_key, step_key, upload_key = jax.random.split(key, 3)
        # Without a message, no mask has ever been uploaded.
        received = {
            name: jnp.where(message.flag, part.codes * part.scale, 0.5) for name, part in message.tree.items()
        }
        start = {
            name: jax.scipy.special.logit(jnp.clip(p, margin, 1 - margin)) for name, p in received.items()
        }

        def loss(learnt: Learnt, batch: training.Batch) -> jax.Array:
            drawn = jax.random.fold_in(step_key, learnt.step.astype(jnp.uint32))
            mask = draw(drawn, jax.tree.map(jax.nn.sigmoid, learnt.scores), straight_through_less)
            return training.mean_cross_entropy(apply(common, mask, batch.inputs), batch)

        learnt, metrics = training.train(
            order_key,
            Learnt(start, jnp.zeros((), jnp.float32)),
            data,
            loss=loss,
            optimizer=counting,
            epochs=epochs,
            batch_size=batch_size,
            augment=augment,
        )
        mask = draw(upload_key, jax.tree.map(jax.nn.sigmoid, learnt.scores), jnp.less)
        return client, Encoded(mask), {**metrics._asdict(), "density": density(mask)}

    def reduce(upload: Encoded, weight: jax.Array) -> Votes:
        everywhere = {name: jnp.ones((1,) * bit.ndim, bool) for name, bit in upload.mask.items()}
        return vote(upload.mask, everywhere, weight > 0)

    def merge(key: chex.PRNGKey, common: Params, server: Server, uploads: Votes, cohort: Cohort) -> Server:
        del common, cohort
        received = jax.tree.leaves(uploads.owners)[0].ravel()[0]
        kept = jnp.where((server.round % reset == 0) & (received > 0), 0, 1)
        ones = {name: kept * old + uploads.ones[name] for name, old in server.ones.items()}
        masks = kept * server.masks + received
        mask = draw(key, probability_of(ones, masks), jnp.less)
        return Server(ones, masks, trees.where(received > 0, mask, server.mask), server.round + 1)

    def predict_global(common: Params, server: Server, x: jax.Array) -> jax.Array:
        return apply(common, server.mask, x)

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict_global=predict_global)


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


def draw(key: chex.PRNGKey, probability: Probability, less: Any) -> dict[str, jax.Array]:
    """One Bernoulli trial per weight: ``less(uniform draw, probability)``."""
    keys = jax.random.split(key, len(probability))
    return {
        name: less(jax.random.uniform(k, p.shape, p.dtype), p)
        for k, (name, p) in zip(keys, sorted(probability.items()))
    }


def _counting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Moves scores by an optimiser, and the number of steps by one."""

    def init(params: Learnt) -> optax.OptState:
        return optimizer.init(params.scores)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        scores, state = optimizer.update(updates.scores, state, params.scores)
        return updates._replace(scores=scores, step=jnp.ones_like(updates.step)), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
