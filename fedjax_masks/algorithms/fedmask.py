"""FedMask: personalised, structured-sparse models from binary masks.

Li, Sun, Zeng, Zhang, Li, Chen: "FedMask: Joint Computation and Communication-Efficient
Personalized Federated Learning via Heterogeneous Masking", SenSys 2021,
doi 10.1145/3485730.3485929.

All devices hold the same frozen random weights ``W``. A device learns one bit per weight;
its model is ``W * mask``, and only bits travel, in both directions. Two facts about an
element are kept apart: its *structure* (False = pruned for ever by the one-shot prune) and
its *value* (the current bit, which has a meaning only where the structure is True).

Where the paper is silent or contradicts itself we choose: the forward pass is binary
(section 3.3) with the soft one of algorithm 1 as a switch; biases are frozen and unmasked;
the first mask is all ones; ties of the majority vote give 0, as all four of figure 8 do.
The aggregate is broadcast, one bit per element. Where its last voter was alone, it carries
that voter's bit; ``start="own"`` marks such elements, at the cost of the marks.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.communication.payload import Encoded, Known, Masked, When
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import Votes, majority, vote
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.masks import (
    binarize,
    binarize_straight_through,
    density,
    group_norms,
    mask_params,
    top_share,
)
from fedjax_masks.core.options import Natural
from fedjax_masks.models import Model, weighted_kernels

Mask = dict[str, jax.Array]
Scores = dict[str, jax.Array]


class Client(NamedTuple):
    """A device's state; dicts are keyed by the layer's name.

    Attributes:
      structure: bool: False = pruned. Of size 1 along every axis in layers that are never
        pruned.
      value: bool, shaped like the kernels: the device's bits; False where pruned.
      visited: ``bool[]``: whether the device has taken part, and so has pruned.
      scores: float32, shaped like the kernels, or empty: see ``keep_scores``.
    """

    structure: Mask
    value: Mask
    visited: jax.Array
    scores: Scores


class Server(NamedTuple):
    """The server's state.

    Attributes:
      bits: bool, shaped like the kernels: the last aggregate.
      shared: bool, for the layers that are pruned and only with ``start="own"``: whether two
        or more devices voted on the element's last aggregate.
    """

    bits: Mask
    shared: Mask


class Message(NamedTuple):
    """What the server sends; both in the chosen encoding."""

    bits: Any
    shared: Any


class Upload(NamedTuple):
    """What a device sends.

    Attributes:
      value: The bits, in the chosen encoding.
      structure: Known to the server from the device's first upload on.
      first: The structure itself, in the device's first upload.
    """

    value: Any
    structure: Known
    first: When


def fedmask(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 5,
    batch_size: int = 10,
    score_scale: float = 1.0,
    prune_ratio: float = 0.2,
    prune_layers: Natural = 2,
    prune_score: Literal["change", "magnitude"] = "change",
    forward: Literal["hard", "soft"] = "hard",
    gradient: Literal["sigmoid", "straight_through"] = "sigmoid",
    sparsity: float = 0.0,
    weights: Literal["model", "constant"] = "model",
    weight_scale: float = 1.0,
    start: Literal["global", "own"] = "global",
    keep_scores: bool = False,
    encoding: Literal["dense", "structure", "entropy"] = "dense",
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedMask.

    Args:
      model: The architecture; its initial parameters are the frozen weights.
      optimizer: The optimiser of the real scores, fresh in every round. Its step size has to
        suit ``score_scale``: too small, and no bit ever flips. Plain SGD with a rate of 100 times
        the scale (Zhou et al. 2019, arXiv 1905.01067, train masks with that rate) flips the bits
        that matter. Adam moves all scores by the same step and flips about half of all bits in
        the first round; units whose exciting weights go together never become active again.
      epochs: Local epochs on the scores per round.
      batch_size: Examples per local step.
      score_scale: The scores that a round starts from are ``+-score_scale``, by the bit held.
      prune_ratio: Share of elements that the one-shot prune keeps, in (0, 1].
      prune_layers: The one-shot prune acts on this many last layers.
      prune_score: What ranks elements there: ``|W * (r_after - r_before)|`` (section 3.4), or
        ``|W * r_after|`` (algorithm 1).
      forward: ``hard`` masks by ``[sigmoid(r) > 0.5]`` in training, ``soft`` by ``sigmoid(r)``.
      gradient: How the hard mask is differentiated: as the sigmoid (eq. 7), or as the identity.
      sparsity: Factor of the structured-sparsity regulariser (eq. 10). The paper's only value is
        2e-4, for centralised MNIST. Under Adam it takes over wherever the data's gradient
        vanishes, until nothing is left of the mask; so there is none by default.
      weights: Frozen weights as the model draws them, or ``constant``: their signs times
        ``weight_scale * sqrt(2 / fan_in)`` (Ramanujan et al. 2020, arXiv 1911.13299).
      weight_scale: Factor of all frozen kernels.
      start: A device starts from the ``global`` aggregate on its structure, or from its ``own``
        mask with the elements replaced that two or more devices voted on.
      keep_scores: Start from the device's last real scores where the received bit agrees with
        them. Costs a float per element of device memory, and nothing on the wire.
      encoding: Of the upload: ``dense`` is one bit per element, pruned or not;
        ``structure`` skips pruned elements; ``entropy`` codes the bits, up and down.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. There is no global model. ``predict`` is the device's model after its last
      local training (the paper's point of measurement); the probe
      ``personal_accuracy_writeback`` is the model after the server's aggregate was written back.

    Raises:
      UserError: The model has no weighted layers.
      ValueError: ``prune_ratio``, ``prune_layers`` or ``score_scale`` is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.fedmask(fm.models.mlp(task, hidden=(32,)), optax.sgd(100.0))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=4)
      >>> run.records[-1]["extra"]["flip_fraction"] > 0
      True
    """
    if not 0 < prune_ratio <= 1:
        raise ValueError(f"prune_ratio={prune_ratio}: accepted is above 0 and at most 1")
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}
    if not 0 <= prune_layers <= len(layers):
        raise ValueError(f"prune_layers={prune_layers}: accepted are 0 to {len(layers)} for {model.name}")
    if not score_scale > 0:
        raise ValueError(f"score_scale={score_scale}: accepted is above 0")

    prunable = list(layers)[len(layers) - prune_layers :] if prune_ratio < 1 else []
    to_mask = {"sigmoid": binarize, "straight_through": binarize_straight_through}[gradient]
    to_mask = jax.nn.sigmoid if forward == "soft" else to_mask

    def kernels(params: Params) -> dict[str, jax.Array]:
        return {name: trees.get(params, path) for name, path in layers.items()}

    def apply(common: Params, mask: Mask, x: jax.Array) -> jax.Array:
        return model.apply(mask_params(model.kernels, common, mask), x)

    def train_scores(
        key: chex.PRNGKey, common: Params, scores: Scores, structure: Mask, data: ClientData, num_epochs: int
    ) -> tuple[Scores, training.LocalMetrics]:
        def masks(scores: Scores, binary: Any) -> dict[str, jax.Array]:
            return {name: binary(r) * structure[name] for name, r in scores.items()}

        data_loss = training.cross_entropy(lambda scores, x: apply(common, masks(scores, to_mask), x))

        def loss(scores: Scores, batch: training.Batch) -> jax.Array:
            if not sparsity:
                return data_loss(scores, batch)
            soft = masks(scores, jax.nn.sigmoid)
            return data_loss(scores, batch) + sparsity * sum(group_norms(m) for m in soft.values())

        return training.train(
            key,
            scores,
            data,
            loss=loss,
            optimizer=optimizer,
            epochs=num_epochs,
            batch_size=batch_size,
            augment=augment,
        )

    def scores_of(bits: Mask, params: Params) -> Scores:
        size = {name: jnp.full_like(weight, score_scale) for name, weight in kernels(params).items()}
        return {name: jnp.where(bit, size[name], -size[name]) for name, bit in bits.items()}

    def one_shot_prune(
        key: chex.PRNGKey, common: Params, client: Client, data: ClientData
    ) -> tuple[Mask, training.LocalMetrics]:
        """One epoch on the scores; the last layers keep what mattered most (section 3.4)."""
        ones = {name: jnp.ones_like(bit) for name, bit in client.value.items()}
        before = scores_of(ones, common)
        after, metrics = train_scores(key, common, before, client.structure, data, 1)
        importance = trees.sub(after, before) if prune_score == "change" else after
        weights = kernels(common)
        kept = {n: top_share(jnp.abs(weights[n] * importance[n]), prune_ratio) for n in prunable}
        return {**client.structure, **kept}, metrics

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        for path in layers.values():
            kernel = trees.get(params, path)
            if weights == "constant":
                fan_in = kernel.size // kernel.shape[-1]
                kernel = jnp.where(kernel < 0, -1, jnp.ones_like(kernel)) * (2.0 / fan_in) ** 0.5
            params = trees.put(params, path, kernel * weight_scale)
        ones = {name: jnp.ones(kernel.shape, bool) for name, kernel in kernels(params).items()}
        structure = {n: m if n in prunable else jnp.ones((1,) * m.ndim, bool) for n, m in ones.items()}
        scores = scores_of(ones, params) if keep_scores else {}
        client = Client(structure, ones, jnp.asarray(False), scores)
        shared = {n: jnp.zeros_like(ones[n]) for n in prunable} if start == "own" else {}
        return State(params, Server(ones, shared), trees.replicate(client, task.num_clients))

    def send(server: Server, client_id: jax.Array) -> Message:
        del client_id
        return Message(*map(Encoded, server)) if encoding == "entropy" else Message(*server)

    def first_bits(client: Client, structure: Mask, received: Server) -> Mask:
        own = {n: jnp.where(s, received.bits[n], client.value[n]) for n, s in received.shared.items()}
        return {n: bit & structure[n] for n, bit in {**received.bits, **own}.items()}

    def train(
        key: chex.PRNGKey, common: Params, message: Any, client: Client, data: ClientData
    ) -> tuple[Client, Upload, Metrics]:
        received = Server(*(part.mask if encoding == "entropy" else part for part in message))
        prune_key, train_key = jax.random.split(key)
        structure, prune_metrics = jax.lax.cond(
            client.visited | (not prunable),
            lambda: (client.structure, training.nothing_done()),
            lambda: one_shot_prune(prune_key, common, client, data),
        )
        bits = first_bits(client, structure, received)
        scores = scores_of(bits, common)
        if keep_scores:
            agrees = jax.tree.map(lambda r, bit: (r > 0) == bit, client.scores, bits)
            scores = jax.tree.map(jnp.where, agrees, client.scores, scores)
        scores, metrics = train_scores(train_key, common, scores, structure, data, epochs)
        value = {name: (r > 0) & structure[name] for name, r in scores.items()}

        new = Client(structure, value, jnp.asarray(True), scores if keep_scores else {})
        flips = sum(jnp.sum(value[n] != bits[n], dtype=jnp.int32) for n in value)
        alive = sum(jnp.sum(jnp.broadcast_to(structure[n], value[n].shape), dtype=jnp.int32) for n in value)
        report = {
            **trees.add(metrics, prune_metrics)._replace(loss=metrics.loss)._asdict(),
            "flip_fraction": flips / alive,
            "density": density(value),
            **{f"density/{name}": jnp.mean(bit, dtype=jnp.float32) for name, bit in value.items()},
        }
        return new, upload_of(new, ~client.visited), report

    def upload_of(client: Client, first: jax.Array) -> Upload:
        # The server has every device's structure from its first upload, which carries it.
        whole = {n: jnp.broadcast_to(s, client.value[n].shape) for n, s in client.structure.items()}
        values = {
            "dense": client.value,
            "structure": {n: Masked(client.value[n], whole[n]) for n in whole},
            "entropy": Encoded(client.value),
        }[encoding]
        pruned = {name: client.structure[name] for name in prunable}
        return Upload(values, Known(client.structure), When(first, Encoded(pruned)))

    def reduce(upload: Upload, weight: jax.Array) -> Votes:
        bits = {
            "dense": lambda v: v,
            "structure": lambda v: {name: part.values for name, part in v.items()},
            "entropy": lambda v: v.mask,
        }[encoding](upload.value)
        return vote(bits, upload.structure.tree, weight > 0)

    def merge(key: chex.PRNGKey, common: Params, server: Server, uploads: Votes, cohort: Cohort) -> Server:
        del key, common, cohort
        owners = uploads.owners
        shared = {n: jnp.where(owners[n] > 0, owners[n] > 1, s) for n, s in server.shared.items()}
        return Server(majority(uploads, default=server.bits), shared)

    def predict(common: Params, server: Server, client: Client, x: jax.Array) -> jax.Array:
        del server
        return apply(common, client.value, x)

    def predict_after_writeback(common: Params, server: Server, client: Client, x: jax.Array) -> jax.Array:
        return apply(common, first_bits(client, client.structure, server), x)

    return FederatedAlgorithm(
        init,
        send,
        train,
        merge,
        reduce=reduce,
        predict=predict,
        probes={"personal_accuracy_writeback": predict_after_writeback},
    )
