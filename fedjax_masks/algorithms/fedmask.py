"""FedMask: personalized, structured-sparse models from binary masks.

Li, Sun, Zeng, Zhang, Li, Chen: "FedMask: Joint Computation and Communication-Efficient
Personalized Federated Learning via Heterogeneous Masking", SenSys 2021,
doi 10.1145/3485730.3485929.

All devices hold the same frozen random weights ``W``. A device learns one bit per weight. Its model is
``W * mask``, and only bits travel, in both directions. We keep two facts about an element apart: its
*structure* (False = pruned for good by the one-shot prune) and its *value* (the current bit, which has a
meaning only where the structure is True).

Where the paper is silent or contradicts itself we choose: the forward pass is binary (section 3.3), with the
soft one of algorithm 1 as an option; devices keep their real scores between rounds; biases are frozen and
unmasked; the first mask is all ones; ties of the majority vote give 0, as all four of figure 8 do.

The server broadcasts the aggregate, one bit per element.
Where an element had a single voter, the aggregate is that voter's bit, which other devices then start from.
The paper aggregates only what devices share: with ``start="own"`` the server composes a mask for each device,
of the device's last bits and the aggregate of the shared elements. That mask is one bit per element, too.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.algorithms.scores import Mask, Scores, first_scores, mask_metrics, scale_kernels, score_loss
from fedjax_masks.communication.payload import AlreadyKnown, Conditional, Encoded, Installed, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import Votes, majority, vote
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import Gradient, mask_params, top_share
from fedjax_masks.core.options import Decay, Natural, PositiveShare, Rate, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model, weighted_kernels

Encoding = Literal["dense", "structure"]


class Client(NamedTuple):
    """A device's state; dicts are keyed by the layer's name.

    Attributes:
      structure: bool: False = pruned; of size 1 along every axis in layers that are never pruned.
      value: bool, shaped like the kernels: the device's bits; False where pruned.
      visited: ``bool[]``: whether the device has taken part, and so has pruned.
      scores: float32, shaped like the kernels, or empty: see ``keep_scores``.
    """

    structure: Mask
    value: Mask
    visited: jax.Array
    scores: Scores


class Server(NamedTuple):
    """The server's state, and its message.

    Attributes:
      weights: The frozen parameters, biases included; in a message, ``Installed``.
      bits: bool, shaped like the kernels: the last aggregate; in a message, the bits to start from.
      shared: bool, shaped like the structure, only with ``start="own"`` and never in a message: whether
        two or more devices voted on the element's last aggregate.
    """

    weights: Params | Installed
    bits: Mask
    shared: Mask


class Upload(NamedTuple):
    """A device's upload.

    Attributes:
      value: The bits, in the chosen encoding.
      structure: The structure, which the server holds from the device's first upload on.
      first: The structure of the layers that are pruned, in the device's first upload.
    """

    value: Mask | Masked
    structure: AlreadyKnown
    first: Conditional


@checks_options
def fedmask(
    model: Model,
    trainer: LocalTraining,
    *,
    weights: Literal["model", "constant"] = "model",
    weight_scale: float = 1.0,
    score_scale: Rate = 1.0,
    prune_ratio: PositiveShare = 0.2,
    prune_layers: Natural = 2,
    prune_score: Literal["change", "magnitude"] = "change",
    forward: Literal["hard", "soft"] = "hard",
    gradient: Gradient = "sigmoid",
    sparsity: Decay = 0.0,
    start: Literal["global", "own"] = "global",
    keep_scores: bool = True,
    encoding: Encoding = "dense",
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedMask.

    Bits travel uncompressed. Entropy coding is a codec for both directions; as in the example.

    Args:
      model: The architecture; its initial parameters are the frozen weights.
      trainer: Local training of the real scores, or its optimizer; 5 epochs as published. With a step size
        that is too small for ``score_scale``, no bit ever flips. Plain SGD with a rate of 100 times the
        scale (that of Zhou et al. 2019, arXiv 1905.01067) flips the bits that matter. Adam moves all scores
        by the same step, and flips about half of all bits in the first round.
      weights: Frozen weights as the model draws them, or ``constant``: their signs times
        ``weight_scale * sqrt(2 / fan_in)`` (Ramanujan et al. 2020, arXiv 1911.13299).
      weight_scale: Factor of all frozen kernels.
      score_scale: The scores that a round starts from are ``+-score_scale``, by the bit held.
      prune_ratio: Share of elements that the one-shot prune keeps, in (0, 1].
      prune_layers: The one-shot prune acts on this many last layers.
      prune_score: The rank of elements there: ``|W * (r_after - r_before)|`` (section 3.4), or
        ``|W * r_after|`` (algorithm 1).
      forward: ``hard`` masks by ``[sigmoid(r) > 0.5]`` in training, ``soft`` by ``sigmoid(r)``.
      gradient: The derivative of the hard mask: that of the sigmoid (eq. 7), or of the identity.
      sparsity: Factor of the structured-sparsity regularizer (eq. 10); 2e-4 as published for central MNIST.
      start: A device starts from the ``global`` aggregate on its structure, or, as published, from its
        ``own`` mask with those elements replaced that two or more devices voted on last. The server then
        keeps each device's last bits, and sends either mask at one bit per element.
      keep_scores: Whether a device starts from its last real scores where the received bit agrees with
        them. Costs a float per element of device memory, and nothing on the wire. False rebuilds all
        scores from the bits in every round, the literal reading of algorithm 1.
      encoding: The upload's: ``dense`` is one bit per element, pruned or not; ``structure`` skips pruned
        elements.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has no global model. The personal model is the device's after its last
      local training (the paper's point of measurement); ``personal_accuracy_writeback`` is the model after
      the server's aggregate was written back.

    Raises:
      UserError: The model has no weighted layers, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> from fedjax_masks.communication import codecs
      >>> from fedjax_masks.transforms.compression import with_codecs
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.fedmask(fm.models.mlp(task, hidden=(16,)), optax.sgd(100.0), epochs=2)
      >>> coded = with_codecs(algorithm, up=codecs.entropy(), down=codecs.entropy())
      >>> run = fm.simulate(coded, task, rounds=2, cohort=2)
      >>> run.records[-1]["extra"]["flip_fraction"] > 0
      True
      >>> run.records[-1]["bytes_down"] < 2 * (64 * 16 + 16 * 10) / 8  # two masks, uncoded a bit per weight
      True
    """
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}
    if prune_layers > len(layers):
        raise UserError(f"prune_layers={prune_layers}: must be at most {len(layers)} for {model.name}")
    prunable = list(layers)[len(layers) - prune_layers :] if prune_ratio < 1 else []
    trainer = as_trainer(trainer, training)
    loss_of = partial(score_loss, model, soft=forward == "soft", gradient=gradient, sparsity=sparsity)

    def one_shot_prune(round: Round, message: Server, client: Client, data: ClientData) -> Mask:
        """One epoch on the scores; the last layers keep what mattered most (section 3.4)."""
        weights, structure = message.weights.tree, client.structure
        before = first_scores(jax.tree.map(jnp.ones_like, client.value), score_scale)
        after, _ = replace(trainer, epochs=1)(round, before, data, loss_of(weights, structure))
        importance = trees.sub(after, before) if prune_score == "change" else after
        ranks = {n: jnp.abs(trees.get(weights, layers[n]) * importance[n]) for n in prunable}
        return {**structure, **{n: top_share(rank, prune_ratio) for n, rank in ranks.items()}}

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = scale_kernels(model.init(key), layers, constant=weights == "constant", scale=weight_scale)
        ones = {name: jnp.ones(trees.get(params, path).shape, bool) for name, path in layers.items()}
        structure = {n: m if n in prunable else jnp.ones((1,) * m.ndim, bool) for n, m in ones.items()}
        scores = first_scores(ones, score_scale) if keep_scores else {}
        client = Client(structure, ones, jnp.asarray(False), scores)
        shared = jax.tree.map(jnp.zeros_like, structure) if start == "own" else {}
        profile = ones if start == "own" else {}
        replicas = trees.replicate((client, profile), task.num_clients)
        return State(Server(params, ones, shared), *replicas)

    def train(round: Round, message: Server, client: Client, data: ClientData) -> tuple[Client, Upload, Info]:
        prune_round, train_round = (round._replace(key=key) for key in jax.random.split(round.key))
        structure = jax.lax.cond(
            client.visited | (not prunable),
            lambda: client.structure,
            lambda: one_shot_prune(prune_round, message, client, data),
        )
        bits = {name: bit & structure[name] for name, bit in message.bits.items()}
        scores = first_scores(bits, score_scale, client.scores)
        scores, info = trainer(train_round, scores, data, loss_of(message.weights.tree, structure))
        value = {name: (r > 0) & structure[name] for name, r in scores.items()}
        new = Client(structure, value, jnp.asarray(True), scores if keep_scores else {})
        upload = make_upload(new, ~client.visited, prunable, encoding)
        return new, upload, info._replace(extra=mask_metrics(bits, value, structure))

    def personal(server: Server, client: Client, x: jax.Array) -> jax.Array:
        return model.apply(mask_params(model.kernels, server.weights, client.value), x)

    def after_writeback(server: Server, client: Client, x: jax.Array) -> jax.Array:
        bits = write_back(server, client.value)
        bits = {name: bit & client.structure[name] for name, bit in bits.items()}
        return model.apply(mask_params(model.kernels, server.weights, bits), x)

    models = {"personal": personal, "personal_accuracy_writeback": after_writeback}
    return FederatedAlgorithm(init, _send, train, _receive, _merge, models)


def _send(round: Round, server: Server, profile: Mask) -> Server:
    del round
    bits = write_back(server, profile) if server.shared else server.bits
    return Server(Installed(server.weights), bits, {})


def _receive(
    round: Round, server: Server, profile: Mask, upload: Upload, weight: jax.Array
) -> tuple[Mask, Votes]:
    del round, weight  # all devices vote alike
    bits, structure = upload.value, upload.structure.tree
    bits = bits.values if isinstance(bits, Masked) else bits
    owned = {name: bit & structure[name] for name, bit in bits.items()}
    return owned if server.shared else profile, vote(bits, structure)


def _merge(round: Round, server: Server, total: Votes) -> tuple[Server, None]:
    del round
    owners = total.owners
    shared = {n: jnp.where(owners[n] > 0, owners[n] > 1, old) for n, old in server.shared.items()}
    return server._replace(bits=majority(total, default=server.bits), shared=shared), None


def write_back(server: Server, value: Mask) -> Mask:
    """A device's bits after the server's aggregate: all elements, or only those that devices share.

    Args:
      server: The server's state; empty ``shared`` stands for ``start="global"``.
      value: The device's last bits.
    """
    shared = server.shared
    return {n: jnp.where(shared[n], bit, value[n]) if shared else bit for n, bit in server.bits.items()}


def make_upload(client: Client, first: jax.Array, prunable: list[str], encoding: Encoding) -> Upload:
    """A device's upload.

    Args:
      client: The device's new state.
      first: ``bool[]``: whether this is its first upload.
      prunable: The layers that are pruned.
      encoding: The encoding of the bits.
    """
    value = client.value
    if encoding == "structure":
        whole = {n: jnp.broadcast_to(s, value[n].shape) for n, s in client.structure.items()}
        # The server knows the structure from the device's first upload, this one or an earlier one.
        value = Masked(value, whole)
    pruned = {name: client.structure[name] for name in prunable}
    return Upload(value, AlreadyKnown(client.structure), Conditional(first, Encoded(pruned)))
