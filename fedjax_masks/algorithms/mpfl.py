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
is trained like everything else that is no filter; an iteration in which no vote arrives is repeated.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms import masked_fedavg as masked
from fedjax_masks.algorithms.consensus import RULES, filter_norms, keep_largest
from fedjax_masks.communication.payload import Conditional, Installed
from fedjax_masks.core.aggregation import Votes, vote
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.masks import all_filters, density, prune
from fedjax_masks.core.options import Bounds, Count, PositiveShare, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, prunable_kernels
from fedjax_masks.transforms.sequence import then

Filters = dict[str, jax.Array]
"""``bool[outputs]`` by layer: False = pruned."""

RuleName = Literal["topk", "dynamic", "reverse", "majority", "unanimity"]
PruneShare = Annotated[float, Bounds(0, 1, above=True, below=True)]


class Server(NamedTuple):
    """The server's state during the search.

    Attributes:
      initial: The initial weights, which never change.
      filters: The mask agreed upon.
      iteration: ``int32[]``: the number of iterations that had votes.
    """

    initial: Params
    filters: Filters
    iteration: jax.Array


class Message(NamedTuple):
    """The server's message during the search.

    Attributes:
      initial: The initial weights.
      filters: The mask; before the first votes it is whole, and not sent.
    """

    initial: Installed
    filters: Conditional


@checks_options
def mpfl_search(
    model: Model,
    trainer: LocalTraining,
    *,
    consensus: RuleName = "topk",
    prune_share: PruneShare = 0.1,
    prune_dense: bool = False,
    prune_bias: bool = False,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """The search for a mask; every round is an iteration.

    Args:
      model: The architecture; its initial parameters are what every client holds.
      trainer: Local training in an iteration, or its optimizer.
      consensus: See :func:`mpfl`.
      prune_share: In iteration ``t``, from 0 on, ``t`` times this share of each layer is required to
        be pruned in all, and every client votes to prune this share of what is left of the layer; in
        iteration 0 nothing.
      prune_dense: See :func:`mpfl`.
      prune_bias: See :func:`mpfl`.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its global model is the masked initial model, which nobody has trained yet.

    Raises:
      UserError: There is no such rule, ``prune_share`` is out of range, or the model has nothing to
        prune.
    """
    if consensus not in RULES:
        raise unknown_name("consensus", consensus, RULES)
    fit = as_trainer(trainer, training).supervised(model.apply)
    kernels, rule = prunable_kernels(model, dense=prune_dense), RULES[consensus]

    def start(initial: Params, filters: Filters) -> tuple[Params, Params]:
        """The masked initial weights, and the mask of all parameters."""
        mask = masked.survivors(model.kernels, initial, filters, prune_bias=prune_bias)
        return prune(initial, mask), mask

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        return State(Server(model.init(key), all_filters(kernels), jnp.int32(0)))

    def send(round: Round, server: Server, profile: PyTree) -> Message:
        del round, profile
        return Message(Installed(server.initial), Conditional(server.iteration > 0, server.filters))

    def train(
        round: Round, message: Message, client: PyTree, data: ClientData
    ) -> tuple[PyTree, Filters, Info]:
        flag, tree = message.filters
        filters = {name: mask | ~flag for name, mask in tree.items()}
        params, mask = start(message.initial.tree, filters)
        params, info = fit(round, params, data, update_mask=mask)
        norms, share = filter_norms(kernels, params), jnp.where(flag, prune_share, 0.0)
        ballot = {name: keep_largest(norms[name], alive, share) for name, alive in filters.items()}
        return client, ballot, info._replace(extra={"density": density(filters)})

    def receive(
        round: Round, server: Server, profile: PyTree, upload: Filters, weight: jax.Array
    ) -> tuple[PyTree, Votes]:
        del round, server, weight
        return profile, vote(upload, {name: jnp.ones(1, bool) for name in upload})

    def merge(round: Round, server: Server, total: Votes) -> tuple[Server, None]:
        del round
        required = server.iteration * jnp.float32(prune_share)
        norms = filter_norms(kernels, start(server.initial, server.filters)[0])
        filters = {
            name: rule(total.ones[name], total.owners[name][0], required, norms[name])
            for name in server.filters
        }
        return server._replace(filters=filters, iteration=server.iteration + 1), None

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(start(server.initial, server.filters)[0], x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})


@checks_options
def mpfl(
    model: Model,
    trainer: LocalTraining,
    *,
    consensus: RuleName = "topk",
    prune_share: PruneShare = 0.1,
    iterations: Count = 10,
    max_sparsity: PositiveShare = 0.9,
    search_epochs: Count = 10,
    prune_dense: bool = False,
    prune_bias: bool = False,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """MPFL: the search for a mask, then federated averaging of the parameters that survive it.

    Args:
      model: The architecture; its initial parameters are what every client holds.
      trainer: Local training in both phases, or its optimizer; its epochs are those of the second phase.
      consensus: The rule that turns votes into a mask, see :mod:`fedjax_masks.algorithms.consensus`.
      prune_share: Share of a layer that an iteration of the search prunes, see :func:`mpfl_search`.
      iterations: The first phase ends after so many rounds with votes.
      max_sparsity: It ends earlier, once more than this share of all prunable filters is pruned.
      search_epochs: Local epochs per round of the first phase.
      prune_dense: Whether hidden dense layers are pruned, too (our extension).
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights. Without
        it, the filter still emits its bias, and cannot be removed.
      server_optimizer: The server optimizer of the second phase; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model, which nobody has trained before the second phase: that of
      ``state.server.second``, which with ``prune_bias``
      :func:`~fedjax_masks.models.compaction.compact` makes a smaller one.

    Raises:
      UserError: As :func:`mpfl_search`, another option is out of range, or the last iteration would prune
        whole layers.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, examples_per_client=40)
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> algorithm = fm.mpfl(model, optax.sgd(0.1), iterations=2, search_epochs=1, prune_dense=True)
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=4)
      >>> [round(record["density"], 2) for record in run.records]
      [1.0, 1.0, 0.88]
    """
    if consensus == "topk" and round((iterations - 1) * prune_share, 9) >= 1:
        most = math.ceil(round(1 / prune_share, 9))
        raise UserError(
            f"iterations={iterations}: must be at most {most} with prune_share={prune_share}; more would "
            "prune every layer as a whole"
        )
    trainer = as_trainer(trainer, training)
    search = mpfl_search(
        model,
        replace(trainer, epochs=search_epochs),
        consensus=consensus,
        prune_share=prune_share,
        prune_dense=prune_dense,
        prune_bias=prune_bias,
    )
    average = masked.masked_fedavg(
        model,
        trainer,
        filters=all_filters(prunable_kernels(model, dense=prune_dense)),
        prune_bias=prune_bias,
        server_optimizer=server_optimizer,
    )

    def done(server: Server) -> jax.Array:
        return (server.iteration >= iterations) | (1 - density(server.filters) > max_sparsity)

    def handover(server: Server, fresh: masked.Server) -> masked.Server:
        mask = masked.survivors(model.kernels, server.initial, server.filters, prune_bias=prune_bias)
        params = prune(server.initial, mask)
        return fresh._replace(model=fresh.model._replace(params=params), filters=server.filters)

    return then(search, average, done=done, handover=handover)
