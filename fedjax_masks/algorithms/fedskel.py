"""FedSkel: every client trains and exchanges only the filters that matter for its own data.

Luo, Yang, Ye, Guo, Zhao: "FedSkel: Efficient Federated Learning on Heterogeneous Systems with
Skeleton Gradients Update", CIKM 2021, doi 10.1145/3459637.3482107, arXiv 2108.09081.

Rounds come in cycles. In the first round of a cycle (*SetSkel*) a client trains and exchanges the whole
model, and sums up the activity of each filter; the most active filters are its *skeleton*. In the other
rounds (*UpdateSkel*) the forward pass is whole, the backward pass is computed for the skeleton alone, and
only the skeleton travels, in both directions. The other filters stay as the client has them.

Where the paper is silent we choose: the options ``cohorts``, ``rest``, ``absent`` and ``warm_up`` name the
choices. A client's tier is its id modulo the number of ratios.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.algorithms import skeleton_averages
from fedjax_masks.algorithms.ratios import ratio_tiers
from fedjax_masks.algorithms.skeleton_averages import Absent, Cycle, Server, Upload, next_cycle, server_side
from fedjax_masks.algorithms.skeletons import Skeleton, keep_count, skeleton_mask, train_skeleton, train_whole
from fedjax_masks.communication.payload import AlreadyKnown, Conditional, Masked
from fedjax_masks.core import algorithm, trees
from fedjax_masks.core.aggregation import weighted
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, Schedule, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import all_filters
from fedjax_masks.core.options import Count, Natural, PositiveShare, checks_options
from fedjax_masks.core.participation import Draw
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, prunable_kernels

Cohorts = Literal["cycle", "fresh"]
Rest = Literal["own", "revert"]
DenseNeurons = Literal["active", "random"]


class Client(NamedTuple):
    """A client's state.

    Attributes:
      params: The client's model.
      cycle: The client's copy of its profile.
    """

    params: Params
    cycle: Cycle


@checks_options
def fedskel(
    model: Model,
    trainer: LocalTraining,
    *,
    ratios: Sequence[PositiveShare] | Literal["devices"] = (0.2,),
    capability: np.ndarray | None = None,
    updates: Count = 4,
    prune_dense: bool = False,
    dense_neurons: DenseNeurons = "random",
    local_dense: bool = False,
    cohorts: Cohorts = "fresh",
    rest: Rest = "revert",
    absent: Absent = "zero",
    warm_up: Natural | None = None,
    mean_model: bool = False,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedSkel.

    Args:
      model: The model.
      trainer: Local training, or its optimizer. Neither momentum nor weight decay moves a parameter
        outside the skeleton.
      ratios: Share of filters in the skeleton, in (0, 1]; client ``i`` has
        ``ratios[i % len(ratios)]``. Each is a program of its own. ``"devices"``: as capable as its
        device is, see :func:`~fedjax_masks.algorithms.ratios.ratios_of`.
      capability: ``float[num_clients]``, in any unit, for ``"devices"``.
      updates: UpdateSkel rounds after each SetSkel round, the paper's k.
      prune_dense: Hidden dense layers have skeletons too, of neurons (our extension).
      dense_neurons: The neurons of these skeletons. ``"active"``: the most active ones, as with filters.
        ``"random"``: drawn at random by each client in each SetSkel round; their updates are a fair sample
        of a whole update.
      local_dense: Dense layers are never exchanged (LG-FedAvg, Liang et al. 2020, arXiv 2001.01523).
      cohorts: ``"cycle"``: a cohort stays for a cycle. ``"fresh"``: every round has a cohort of its own, and
        every client counts the rounds of its own cycle.
      rest: The filters outside the skeleton after a SetSkel round. ``"own"``: they stay as the client has
        trained them. ``"revert"``: they go back to what the server sent.
      absent: What a client says of a filter that it does not send. ``"ignore"``: nothing, a filter's update
        is the mean over the clients that sent it. ``"zero"``: an update of 0. ``"stale"``: its own old
        filter, as in the authors' mean over whole models.
      warm_up: The number of rounds of FedAvg before the first cycle. None: half of all rounds on the command
        line, and none in Python, where the number of rounds is not known.
      mean_model: Whether the mean over the models of all clients, with or without a part in the round, is
        evaluated as ``"mean"``. The server knows these models, so that no byte is added.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its global model is the server's, its personal model the client's own (the paper's "local
      test"). The paper's "new test" is of the mean over all clients' models, see ``mean_model``.

    Raises:
      UserError: An option is out of range or does not fit another one, or no layer has a skeleton.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> algorithm = fm.fedskel(model, optax.sgd(0.1), ratios=(0.5,), prune_dense=True)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=2, eval_every=1)
      >>> first, later = run.records[0]["bytes_up"], run.records[-1]["bytes_up"]
      >>> first > later
      True
    """
    if mean_model and local_dense:
        raise UserError(
            "mean_model=true: must be false with local_dense, since the server lacks those layers"
        )
    warm_up = warm_up or 0
    ratios, tier_of = ratio_tiers(ratios, capability)
    trainer = as_trainer(trainer, training)
    kernels = prunable_kernels(model, dense=prune_dense)
    counts = [{k.name: keep_count(k.outputs, ratio) for k in kernels} for ratio in ratios]
    drawn = [k.name for k in kernels if k.kind == "dense" and dense_neurons == "random"]
    set_skeleton = train_whole(model, trainer, counts, drawn)
    update_skeleton = [train_skeleton(model, trainer, kernels, numbers) for numbers in counts]

    is_warm_up, is_whole = _phases(cohorts, updates, warm_up)

    def exchange_mask(params: Params, skeleton: Skeleton, whole: jax.Array) -> PyTree:
        mask = skeleton_mask(kernels, params, {name: m | whole for name, m in skeleton.items()})
        return _without_dense(model, mask) if local_dense else mask

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        client = Client(params, Cycle(all_filters(kernels), jnp.int32(0)))
        clients = trees.replicate(client, task.num_clients)
        everybody = weighted(params, jnp.float32(task.num_clients)) if mean_model else None
        return State(Server(params, everybody), clients, clients.cycle)

    def send(round: Round, server: Server, profile: Cycle) -> Masked:
        # The client knows the mask: it has chosen its skeleton, and counts the rounds.
        return Masked(server.params, exchange_mask(server.params, profile.skeleton, is_whole(round, profile)))

    def train(round: Round, message: Masked, client: Client, data: ClientData) -> tuple[Client, Upload, Info]:
        warm, whole, old = is_warm_up(round), is_whole(round, client.cycle), client.cycle.skeleton
        mask = exchange_mask(client.params, old, whole)
        start = jax.tree.map(jnp.where, mask, message.values, client.params)
        arguments = (round, start, data, old)
        branches = [partial(update, *arguments) for update in update_skeleton]
        params, info, skeleton = jax.lax.cond(
            whole, partial(set_skeleton, *arguments), lambda: jax.lax.switch(data.tier, branches)
        )

        share = sum(jnp.sum(m) for m in old.values()) / sum(k.outputs for k in kernels)
        info = info._replace(extra={"density": jnp.where(whole, 1.0, share)})
        final = params
        if rest == "revert":
            trained = skeleton_mask(kernels, params, {name: m | warm for name, m in skeleton.items()})
            final = jax.tree.map(jnp.where, trained, params, start)
        upload = Upload(
            # The server knows the mask: it got the skeleton in the last SetSkel round, and counts the rounds.
            Masked(trees.sub(params, start), mask),
            Conditional(whole & ~warm, skeleton),
            AlreadyKnown(params if absent == "stale" else ()),
            AlreadyKnown(trees.sub(final, client.params) if mean_model else ()),
        )
        return Client(final, next_cycle(client.cycle, skeleton, warm)), upload, info

    receive, merge = server_side(absent, is_warm_up)
    # Fresh cohorts are at different places of their cycles.
    period = updates + 1 if cohorts == "cycle" else 1
    schedule = Schedule(_selection(cohorts, updates + 1, warm_up), len(ratios), tier_of, period)
    return FederatedAlgorithm(init, send, train, receive, merge, _models(model, mean_model), schedule)


def _phases(
    cohorts: Cohorts, updates: int, warm_up: int
) -> tuple[Callable[[Round], jax.Array], Callable[[Round, Cycle], jax.Array]]:
    """Functions that say whether a round belongs to the warm-up, and whether it is whole for a client."""

    def is_warm_up(round: Round) -> jax.Array:
        return round.index < warm_up

    def is_whole(round: Round, cycle: Cycle) -> jax.Array:
        # Where a cohort shares its cycle, all of its clients take the same branch, and vmap computes one.
        turn = cycle.visits if cohorts == "fresh" else round.index - warm_up
        return is_warm_up(round) | (turn % (updates + 1) == 0)

    return is_warm_up, is_whole


def _models(model: Model, mean_model: bool) -> dict[str, algorithm.Predict]:
    """The models that are evaluated."""
    models: dict[str, algorithm.Predict] = {
        "global": lambda server, client, x: model.apply(server.params, x),
        "personal": lambda server, client, x: model.apply(client.params, x),
    }
    if mean_model:
        models["mean"] = lambda server, client, x: model.apply(skeleton_averages.mean_model(server), x)
    return models


def _selection(cohorts: Cohorts, length: int, warm_up: int) -> Callable[[int, Draw], np.ndarray]:
    """The cohort of a round; a cycle has ``length`` rounds."""

    def select(index: int, draw: Draw) -> np.ndarray:
        later = index - warm_up
        return draw(index if cohorts == "fresh" or later < 0 else index - later % length)

    return select


def _without_dense(model: Model, mask: PyTree) -> PyTree:
    """The mask, False in dense layers."""
    for kernel in model.kernels:
        if kernel.kind == "dense":
            for path in filter(None, (kernel.path, kernel.bias)):
                mask = trees.put(mask, path, jnp.zeros_like(trees.get(mask, path)))
    return mask
