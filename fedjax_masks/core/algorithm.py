"""The contract: a federated algorithm is a record of pure functions.

Everything in the package is written against the types of this module. Client and server meet only in the
``message`` (server to client) and the ``upload`` (client to server): nothing else carries information between
them, so nothing else needs accounting.

All functions but ``init``, ``merge`` and the schedule are written for *one* client. The map over clients, the
loop over rounds, devices, files and logging belong to :mod:`fedjax_masks.simulation` and above.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import chex
import jax

from fedjax_masks.core.participation import DEFAULT_SCHEDULE as DEFAULT_SCHEDULE
from fedjax_masks.core.participation import Draw as Draw
from fedjax_masks.core.participation import Schedule as Schedule
from fedjax_masks.core.participation import every_round as every_round
from fedjax_masks.core.participation import one_tier as one_tier
from fedjax_masks.core.task import ClientIndex as ClientIndex
from fedjax_masks.core.task import Task as Task
from fedjax_masks.core.types import Params as Params
from fedjax_masks.core.types import PyTree as PyTree


class State(NamedTuple):
    """All that a simulation carries from round to round.

    Attributes:
      server: The server's state, one copy. Frozen weights live here, too.
      clients: Each client's own state; every leaf is ``[num_clients, ...]``.
      profiles: The server's knowledge of each client; every leaf is ``[num_clients, ...]``.
    """

    server: PyTree
    clients: PyTree = ()
    profiles: PyTree = ()


class Round(NamedTuple):
    """The round, as both ends know it without a message.

    Attributes:
      key: In ``send``, ``train`` and ``receive`` the client's key of this round, the same for all three, so
        that both ends can draw alike. Fold in a constant where draws must differ. In ``merge``, the server's.
      index: ``int32[]``: the number of the round, from 0.
    """

    key: chex.PRNGKey
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] -- tuples have a method index


class Work(NamedTuple):
    """Work of one client, or of the server.

    Attributes:
      steps: ``float32[]``: optimizer steps.
      examples: ``float32[]``: examples seen, over all epochs.
      slots: ``float32[]``: places for examples in the minibatches that were computed; the excess over
        ``examples`` was padding.
      flops: ``float32[]``: FLOPs; see :mod:`fedjax_masks.core.flops`.
      traffic: ``float32[]``: bytes through memory.
    """

    steps: jax.Array
    examples: jax.Array
    slots: jax.Array
    flops: jax.Array
    traffic: jax.Array


class Info(NamedTuple):
    """Facts for people; the next round never needs them.

    Attributes:
      loss: ``float32[]``: the mean training loss, or None.
      work: The work of the function. Loops of :mod:`fedjax_masks.core.training` report their work; the engine
        adds up the work of all loops of the function, in branches and inner loops as well, and puts the sum
        here.
      extra: Further metrics by name: scalars.
    """

    loss: jax.Array | None = None
    work: Work | None = None
    extra: Mapping[str, jax.Array] = {}  # safe as a default: nothing writes to it


class Stack(NamedTuple):
    """A part of a contribution that ``merge`` gets stacked, ``[clients, ...]``, instead of summed.

    The first axis also has padding. Entries of padding, and of clients whose upload did not arrive, are
    zeros. The order of the clients is arbitrary.

    Attributes:
      tree: Any pytree of arrays.
    """

    tree: PyTree


class ClientData(NamedTuple):
    """One client's examples, as a view into arrays that all clients share.

    Attributes:
      inputs: ``[num_examples, *input_shape]``, uint8 or float32: the whole data set.
      labels: ``int32[num_examples]``.
      rows: ``int32[capacity]``: indices of the client's examples in ``inputs``. Entries from ``size`` on are
        padding and may point to any example.
      size: ``int32[]``: the number of the client's examples.
      longest: ``int32[]``: the largest ``size`` among the clients that run in step with this one. Loops over
        minibatches run to ``longest``, so that their trip count is the same for all clients of a block;
        places from ``size`` on are padding. Where all clients have equally many examples, both numbers may
        be constants, ``np.int32``, which makes loops faster; a function must not rely on it.
      tier: ``int32[]``: the client's tier. Clients that run in step share a tier, so that a ``lax.switch`` on
        it runs one branch.
    """

    inputs: jax.Array
    labels: jax.Array
    rows: jax.Array
    size: jax.Array
    longest: jax.Array
    tier: jax.Array


class Init(Protocol):
    """Makes the state before round 0; traced, with a static ``task``."""

    def __call__(self, key: chex.PRNGKey, task: Task) -> State: ...


class Send(Protocol):
    """Makes the message from the server to one client, any payload of :mod:`fedjax_masks.communication`.

    The function runs inside the map over clients: arrays that do not depend on ``profile`` are never copied
    per client.
    """

    def __call__(self, round: Round, server: PyTree, profile: PyTree) -> PyTree: ...


class Train(Protocol):
    """Trains one client on its own data.

    Returns:
      The client's new state, its upload (any payload), and facts for people.
    """

    def __call__(
        self, round: Round, message: PyTree, client: PyTree, data: ClientData
    ) -> tuple[PyTree, PyTree, Info]: ...


class Receive(Protocol):
    """Handles one upload on the server; called for each upload that arrived.

    Args:
      round: The round, with the client's key.
      server: The server's state before the round.
      profile: The server's knowledge of the client.
      upload: The client's upload.
      weight: ``float32[]``: the number of the client's training examples; above 0.

    Returns:
      The client's new profile, and a contribution. Contributions are summed over the cohort leaf by leaf,
      so that memory does not grow with the cohort; see :class:`Stack` for the exception.
    """

    def __call__(
        self, round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, PyTree]: ...


class Merge(Protocol):
    """Updates the server's state with the sum of all contributions.

    Where no upload arrived, the engine keeps the server's state as it was.

    Returns:
      The server's new state; and facts for people where the server itself trains, else None.
    """

    def __call__(self, round: Round, server: PyTree, total: PyTree) -> tuple[PyTree, Info | None]: ...


class Predict(Protocol):
    """Computes ``logits[batch, num_classes]`` of one model.

    Args:
      server: The server's state.
      client: The client's state; None for the model ``"global"``.
      x: ``[batch, *input_shape]``.
    """

    def __call__(self, server: PyTree, client: PyTree, x: jax.Array) -> jax.Array: ...


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm, as pure functions over pytrees.

    A factory such as ``fedavg(model, trainer, *, ...)`` closes over static choices and returns this record;
    values that change from round to round or from client to client are traced. Variants replace single
    functions: ``fedavg(...)._replace(train=...)``.

    Attributes:
      init: ``(key, task) -> State``.
      send: ``(round, server, profile) -> message``; server to client.
      train: ``(round, message, client, data) -> (client, upload, Info)``; on the client.
      receive: ``(round, server, profile, upload, weight) -> (profile, contribution)``; on the server, for
        each upload that arrived.
      merge: ``(round, server, total) -> (server, Info | None)``; on the server, once a round.
      predict: Models by name, each ``(server, client, x) -> logits``. ``"global"`` is evaluated on the global
        test set, all others on each client's own test data. ``"personal"`` is the client's own model; without
        it, every client uses the global one. Other names are further points of measurement.
      schedule: Participation and tiers, on the host.

    Example:
      >>> import fedjax_masks as fm, optax
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedavg(fm.models.mlp(task), optax.sgd(0.1))
      >>> sorted(algorithm.predict), algorithm.schedule.num_tiers
      (['global'], 1)
    """

    init: Init
    send: Send
    train: Train
    receive: Receive
    merge: Merge
    predict: Mapping[str, Predict]
    schedule: Schedule = DEFAULT_SCHEDULE
