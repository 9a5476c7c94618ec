"""MPFL: clients agree on which filters to prune, and only then train a model together.

Gez, Cohen: "A Masked Pruning Approach for Dimensionality Reduction in Communication-Efficient
Federated Learning Systems", 2023, arXiv 2312.03889.

While the mask is searched, no weights travel. All clients hold the same initial weights; in every
iteration a client starts from them again, masked, trains alone, ranks the filters of each convolution by
their L2 norm and votes to prune the smallest: one bit per filter. The server turns the votes into a
mask, by a rule of :mod:`fedjax_masks.algorithms.consensus`, and broadcasts it. In the second phase the masked
initial weights are trained by FedAvg, of which only the surviving parameters travel:
:mod:`fedjax_masks.algorithms.masked_fedavg`. The two phases are two algorithms, and :func:`mpfl` is one
after the other.

Where the paper is silent or cannot be followed we choose: the default rule prunes exactly what is
required, since the published ones over- or undershoot; as only bits travel, equal votes are decided by
the norms of the initial filters, which the server knows; a mask travels with the message of the next
iteration, and none with the first, whose mask is whole; batch normalisation, where the model has any,
is trained like everything else that is no filter.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms import masked_fedavg as masked
from fedjax_masks.algorithms.consensus import RULES
from fedjax_masks.communication.payload import When
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import Votes, vote
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.errors import unknown
from fedjax_masks.core.masks import all_filters, density, prune, top_count
from fedjax_masks.core.options import Count, PositiveShare
from fedjax_masks.models import Kernel, Model, prunable_kernels
from fedjax_masks.transforms.sequence import then

Filters = dict[str, jax.Array]
RuleName = Literal["topk", "dynamic", "reverse", "majority", "unanimity"]


class Server(NamedTuple):
    """The server's state during the search.

    Attributes:
      filters: By layer: ``bool[outputs]``: the mask agreed upon; False = pruned.
      iteration: ``int32[]``: iterations done.
    """

    filters: Filters
    iteration: jax.Array


def mpfl_search(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 10,
    batch_size: int = 10,
    consensus: RuleName = "topk",
    prune_share: PositiveShare = 0.1,
    prune_dense: bool = False,
    prune_bias: bool = False,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """The search for a mask; every round is an iteration.

    Args:
      model: The architecture; its initial parameters are what every client holds.
      optimizer: The clients' optimiser, fresh in every iteration.
      epochs: Local epochs per iteration.
      batch_size: Examples per local step.
      consensus: The rule that turns votes into a mask, see :mod:`fedjax_masks.algorithms.consensus`.
      prune_share: In iteration ``t``, from 0 on, ``t`` times this share of each layer is required to
        be pruned in all, and every client votes to prune this share of what is left of the layer; in
        iteration 0 nothing.
      prune_dense: Whether hidden dense layers are pruned, too (our extension).
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights. Without
        it, it still emits its bias, and cannot be removed.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. Its global model is the masked initial model, which nobody has trained yet.

    Raises:
      ValueError: There is no such rule, ``prune_share`` is out of range, or the model has nothing to
        prune.
    """
    if consensus not in RULES:
        raise unknown("consensus", consensus, RULES)
    if not 0 < prune_share < 1:
        raise ValueError(f"prune_share={prune_share}: accepted is above 0 and below 1")
    pruned = prunable_kernels(model, dense=prune_dense)
    rule = RULES[consensus]
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)

    def start(common: Params, filters: Filters) -> tuple[Params, Params]:
        """The masked initial weights, and the mask of all parameters."""
        kept = masked.survivors(model.kernels, common, filters, prune_bias=prune_bias)
        return prune(common, kept), kept

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        return State(model.init(key), Server(all_filters(pruned), jnp.zeros((), jnp.int32)), ())

    def send(server: Server, client_id: jax.Array) -> When:
        del client_id
        return When(server.iteration > 0, server.filters)

    def train(
        key: chex.PRNGKey, common: Params, message: When, client: Any, data: ClientData
    ) -> tuple[Any, Filters, Metrics]:
        filters = {name: mask | ~message.flag for name, mask in message.tree.items()}
        params, kept = start(common, filters)
        params, metrics = fit(key, params, data, update_mask=kept)
        share = jnp.where(message.flag, prune_share, 0.0)
        norms = filter_norms(pruned, params)
        ballot = {name: keep_largest(norms[name], mask, share) for name, mask in filters.items()}
        return client, ballot, {**metrics._asdict(), "density": density(filters)}

    def reduce(upload: Filters, weight: jax.Array) -> Votes:
        return vote(upload, {name: jnp.ones(1, bool) for name in upload}, weight > 0)

    def merge(key: chex.PRNGKey, common: Params, server: Server, uploads: Votes, cohort: Cohort) -> Server:
        del key, cohort
        required = server.iteration * jnp.float32(prune_share)
        norms = filter_norms(pruned, start(common, server.filters)[0])

        def agree(name: str, before: jax.Array) -> jax.Array:
            voters = uploads.owners[name][0]
            after = rule(uploads.ones[name], voters, required, norms[name])
            return jnp.where(voters > 0, after, before)

        filters = {name: agree(name, before) for name, before in server.filters.items()}
        return Server(filters, server.iteration + 1)

    def predict_global(common: Params, server: Server, x: jax.Array) -> jax.Array:
        return model.apply(start(common, server.filters)[0], x)

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict_global=predict_global)


def mpfl(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    consensus: RuleName = "topk",
    prune_share: PositiveShare = 0.1,
    iterations: Count = 10,
    max_sparsity: PositiveShare = 0.9,
    search_epochs: Count = 10,
    prune_dense: bool = False,
    prune_bias: bool = False,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """MPFL: the search for a mask, then federated averaging of what it leaves.

    Args:
      model: The architecture; its initial parameters are what every client holds.
      optimizer: The clients' optimiser in both phases, fresh in every round.
      epochs: Local epochs per round of the second phase.
      batch_size: Examples per local step.
      consensus: The rule that turns votes into a mask, see :mod:`fedjax_masks.algorithms.consensus`.
      prune_share: Share of a layer that an iteration of the search prunes, see :func:`mpfl_search`.
      iterations: The first phase ends after so many rounds.
      max_sparsity: It ends earlier, once more than this share of all prunable filters is pruned.
      search_epochs: Local epochs per round of the first phase.
      prune_dense: Whether hidden dense layers are pruned, too (our extension).
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights. Without
        it, it still emits its bias, and cannot be removed.
      server_optimizer: Of the second phase; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model, which nobody has trained before the second phase: that of
      ``state.server.second``, which with ``prune_bias``
      :func:`~fedjax_masks.models.compaction.compact` makes a smaller one.

    Raises:
      ValueError: As :func:`mpfl_search`, or the last iteration would prune whole layers.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.mpfl(fm.models.cnn(task), optax.sgd(0.1), iterations=2, search_epochs=1)
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=10)
      >>> [round(record["density"], 2) for record in run.records]
      [1.0, 1.0, 0.91]
    """
    required = round((iterations - 1) * prune_share, 9)
    if consensus == "topk" and required >= 1:
        raise ValueError(
            f"iterations={iterations}: every layer would lose all its filters; accepted with "
            f"prune_share={prune_share} is up to {math.ceil(round(1 / prune_share, 9))}"
        )
    shared = {"batch_size": batch_size, "prune_bias": prune_bias, "augment": augment}
    search = mpfl_search(
        model,
        optimizer,
        epochs=search_epochs,
        consensus=consensus,
        prune_share=prune_share,
        prune_dense=prune_dense,
        **shared,
    )
    whole = all_filters(prunable_kernels(model, dense=prune_dense))
    training = masked.masked_fedavg(
        model, optimizer, filters=whole, epochs=epochs, server_optimizer=server_optimizer, **shared
    )

    def done(server: Server) -> jax.Array:
        return (server.iteration >= iterations) | (1 - density(server.filters) > max_sparsity)

    def handover(common: Params, server: Server, fresh: masked.Server) -> masked.Server:
        kept = masked.survivors(model.kernels, common, server.filters, prune_bias=prune_bias)
        return fresh._replace(model=fresh.model._replace(params=prune(common, kept)), filters=server.filters)

    return then(search, training, done=done, handover=handover)


def filter_norms(kernels: Iterable[Kernel], params: Params) -> dict[str, jax.Array]:
    """By layer: ``float32[outputs]``: the L2 norm of each filter's weights."""
    weights = {kernel.name: trees.get(params, kernel.path) for kernel in kernels}
    return {name: jnp.sqrt(jnp.sum(w * w, range(w.ndim - 1))) for name, w in weights.items()}


def keep_largest(norms: jax.Array, alive: jax.Array, share: jax.typing.ArrayLike) -> jax.Array:
    """Prunes a share of a layer's living filters, those with the smallest norms.

    Args:
      norms: ``float32[filters]``, 0 or more.
      alive: ``bool[filters]``.
      share: ``float32[]``, of the living ones; rounded half to even, and one filter always stays.

    >>> keep_largest(jnp.array([3.0, 0.0, 1.0, 2.0]), jnp.array([True, False, True, True]), 0.34).tolist()
    [True, False, False, True]
    """
    living = jnp.sum(alive)
    number = jnp.minimum(jnp.round(share * living).astype(jnp.int32), living - 1)
    return top_count(jnp.where(alive, norms, -1.0), living - number)
