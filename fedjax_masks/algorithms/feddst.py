"""FedDST: one sparse global model, whose mask clients readjust while they train it.

Bibikar, Vikalo, Wang, Chen: "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet
Learning Better", AAAI 2022, arXiv 2112.09824.

Only the weights under the mask are trained, and only they travel. Every few rounds, at the end of local
training, each client drops a share of them, the smallest, and grows as many where its gradient is largest.
The server takes for each weight the mean over the clients that hold it, and prunes what they hold together
back to the target, by magnitude.

Densities of layers are those of Erdos-Renyi kernels, as Evci et al. 2020 (arXiv 1911.11134) scale them.
Where paper and program are silent or differ we choose: the gradient is the mean over all of the client's
examples; the share of weights to drop decays as in the paper (the program drops a constant one); of weights
of equal magnitude, as all are that have just been grown, the server keeps those that most examples stand
for; a mask is sent to a client that has not got it, also the first one.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.communication.payload import Known, Masked, When
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum, noted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.masks import density, prune, top_count, weight_mask
from fedjax_masks.core.options import Count, Natural, Share
from fedjax_masks.models import Kernel, Model, weighted_kernels

Mask = dict[str, jax.Array]
Distribution = Literal["erk", "uniform"]


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model; 0 where the mask is False.
      mask: By layer: bool, shaped like the kernel.
      told: ``bool[num_clients]``: who has got this mask.
      round: ``int32[]``: rounds done.
    """

    params: Params
    mask: Mask
    told: jax.Array
    round: jax.Array


class Message(NamedTuple):
    """What the server sends.

    Attributes:
      params: The weights under the mask.
      mask: The mask, to a client that has not got it; a client's state is the mask that it got last.
      drop: ``float32[]``: the share of weights to drop in this round: known to all, by its number.
    """

    params: Masked
    mask: When
    drop: Known


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      params: The trained weights, under the client's new mask; not what training added to them, of which
        rounding would leave something where a weight was dropped and grown again.
      mask: The new mask, in rounds that readjust it.
    """

    params: Masked
    mask: When


def feddst(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    sparsity: Share = 0.8,
    distribution: Distribution = "erk",
    adjust_every: Count = 15,
    adjust_share: Share = 0.05,
    adjust_until: Natural = 200,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedDST.

    Args:
      model: The model; its first mask keeps the largest of its initial weights.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      sparsity: Share of all kernels' weights that is pruned; biases and normalisation never are.
      distribution: How the pruned share is divided among the layers: see :func:`kept_counts`.
      adjust_every: Clients readjust the mask in every so many-th round.
      adjust_share: Share of a layer's weights that they then replace, at first.
      adjust_until: That share decays by half a cosine, down to 0 in this round, from which on the mask
        stays.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model, which is sparse, and no personal ones.

    Raises:
      UserError: The model has no weighted layers.
      ValueError: An option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.feddst(fm.models.mlp(task, hidden=(32,)), optax.sgd(0.1), adjust_every=2)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=4)
      >>> round(run.records[-1]["density"], 2)
      0.2
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}: accepted is at least 0 and below 1")
    if not 0 <= adjust_share <= 1:
        raise ValueError(f"adjust_share={adjust_share}: accepted is at least 0 and at most 1")
    if adjust_every < 1:
        raise ValueError(f"adjust_every={adjust_every}: accepted is 1 or more")
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}
    counts = kept_counts(model.kernels, sparsity, distribution)
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)
    data_loss = training.cross_entropy(model.apply)

    def kernels(params: Params) -> dict[str, jax.Array]:
        return {name: trees.get(params, path) for name, path in layers.items()}

    def kept_of(params: Params, mask: Mask) -> Params:
        return weight_mask(model.kernels, params, mask)

    def gradient(key: chex.PRNGKey, params: Params, data: ClientData) -> tuple[Params, training.LocalMetrics]:
        """The gradient over all examples times their number: a pass that moves nothing, of no steps."""

        def loss(params: Params, batch: training.Batch) -> tuple[jax.Array, Params]:
            return jnp.zeros(()), trees.scale(jax.grad(data_loss)(params, batch), jnp.sum(batch.real))

        _, metrics, total = training.train_with_sums(
            key,
            params,
            data,
            loss=loss,
            optimizer=optax.set_to_zero(),
            epochs=1,
            batch_size=batch_size,
            account=lambda metrics: metrics._replace(steps=jnp.zeros_like(metrics.steps)),
        )
        return total, metrics

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        mask = {name: top_count(jnp.abs(w), counts[name]) for name, w in kernels(params).items()}
        nobody = jnp.zeros(task.num_clients, bool)
        server = Server(prune(params, kept_of(params, mask)), mask, nobody, jnp.zeros((), jnp.int32))
        return State((), server, trees.replicate(jax.tree.map(jnp.ones_like, mask), task.num_clients))

    def drop_share(done: jax.Array) -> jax.Array:
        number = done + 1
        decayed = adjust_share / 2 * (1 + jnp.cos(jnp.pi * number / max(adjust_until, 1)))
        return jnp.where((number % adjust_every == 0) & (number < adjust_until), decayed, 0.0)

    def send(server: Server, client_id: jax.Array) -> Message:
        # The client knows the mask: it comes along, or has come with an earlier message.
        sent = Masked(server.params, kept_of(server.params, server.mask))
        return Message(sent, When(~server.told[client_id], server.mask), Known(drop_share(server.round)))

    def train(
        key: chex.PRNGKey, common: Any, message: Message, client: Mask, data: ClientData
    ) -> tuple[Mask, Upload, Metrics]:
        del common
        mask, drop = trees.where(message.mask.flag, message.mask.tree, client), message.drop.tree
        kept = kept_of(message.params.values, mask)
        start = prune(message.params.values, kept)
        params, metrics = fit(key, start, data, update_mask=kept)

        def readjusted() -> tuple[Mask, Params, training.LocalMetrics]:
            slopes, spent = gradient(key, params, data)
            weights, slopes = kernels(params), kernels(slopes)
            pairs = {n: readjust(weights[n], slopes[n], m, counts[n], drop) for n, m in mask.items()}
            new, held = ({n: pair[i] for n, pair in pairs.items()} for i in range(2))
            return new, prune(params, kept_of(params, held)), spent

        new, params, spent = jax.lax.cond(
            drop > 0, readjusted, lambda: (mask, params, training.nothing_done())
        )
        moved = sum(jnp.sum(new[n] & ~m, dtype=jnp.int32) for n, m in mask.items())
        report = trees.add(metrics, spent)._replace(loss=metrics.loss)._asdict()
        report |= {"density": density(new), "readjusted": moved / sum(counts.values())}
        # The server knows the mask: it is its own, or the one in the same upload.
        trained = Masked(params, kept_of(params, new))
        return mask, Upload(trained, When(drop > 0, new)), report

    def reduce(upload: Upload, weight: jax.Array) -> WeightedSum:
        values, held = upload.params
        owned = jax.tree.map(lambda m: jnp.where(m, weight, 0.0), held)
        return WeightedSum(jax.tree.map(lambda v, m, w: jnp.where(m, v, 0) * w, values, held, owned), owned)

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: WeightedSum, cohort: Cohort) -> Server:
        del key, common
        params = jax.tree.map(
            lambda t, w, old: weighted_mean(WeightedSum(t, w), old), *uploads, server.params
        )
        support = kernels(uploads.weight)
        mask = {n: strongest(w, support[n], counts[n]) for n, w in kernels(params).items()}
        came = jnp.any(cohort.weight > 0)
        mask = trees.where(came, mask, server.mask)
        changed = jnp.any(jnp.stack([jnp.any(mask[n] != m) for n, m in server.mask.items()]))
        told = noted(server.told, True, cohort.ids, cohort.weight > 0) & ~changed
        return Server(prune(params, kept_of(params, mask)), mask, told, server.round + 1)

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.params, x)

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict_global=predict_global)


def kept_counts(kernels: Iterable[Kernel], sparsity: float, distribution: Distribution) -> dict[str, int]:
    """How many weights each layer keeps, so that all together keep ``1 - sparsity``.

    ``uniform``: the same share everywhere. ``erk``: a share in proportion to ``(in + out + height + width) /
    (in * out * height * width)``, which spares small layers; one that would have to keep more than it
    has stays whole, and the others share what is left.

    >>> from types import SimpleNamespace as S
    >>> layers = [S(name="a", shape=(2, 3)), S(name="b", shape=(10, 20))]
    >>> kept_counts(layers, 0.8, "uniform"), kept_counts(layers, 0.8, "erk")
    ({'a': 1, 'b': 40}, {'a': 6, 'b': 35})
    """
    shapes = {kernel.name: kernel.shape for kernel in kernels}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    scores = {name: sum(s) if distribution == "erk" else sizes[name] for name, s in shapes.items()}
    budget, whole = (1 - sparsity) * sum(sizes.values()), set()
    while True:
        rest = [name for name in sizes if name not in whole]
        factor = (budget - sum(sizes[name] for name in whole)) / max(sum(scores[name] for name in rest), 1)
        full = {name for name in rest if factor * scores[name] >= sizes[name]}
        if not full:
            kept = {name: max(1, round(factor * scores[name])) for name in rest}
            return {name: kept.get(name, size) for name, size in sizes.items()}
        whole |= full


def readjust(
    weights: jax.Array, slopes: jax.Array, mask: jax.Array, count: int, drop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One layer's new mask: without the smallest weights, but with the places of the largest slopes.

    Args:
      weights: float32, any shape.
      slopes: Their gradient, of the same shape.
      mask: bool, of the same shape, ``count`` times True.
      count: Of weights to hold, before and after.
      drop: ``float32[]``: share of them to drop; one always stays.

    Returns:
      The new mask, and which of it were held before; what is grown starts at 0.
    """
    keep = jnp.maximum(count - jnp.round(drop * count).astype(jnp.int32), 1)
    held = top_count(jnp.where(mask, jnp.abs(weights), -1.0), keep)
    return top_count(jnp.where(held, jnp.inf, jnp.abs(slopes)), count), held


def strongest(weights: jax.Array, support: jax.Array, count: int) -> jax.Array:
    """The ``count`` largest of the weights that somebody holds; of equals those of most support.

    >>> strongest(jnp.array([0.0, 0.0, -2.0, 9.0]), jnp.array([1.0, 3.0, 1.0, 0.0]), 2).tolist()
    [False, True, True, False]
    """
    share = support / jnp.maximum(jnp.max(support), 1)
    order = jnp.where(weights == 0, share - 1, jnp.abs(weights))
    return top_count(jnp.where(support > 0, order, -2.0), count)
