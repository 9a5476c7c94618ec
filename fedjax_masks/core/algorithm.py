"""The contract: a federated algorithm is a record of pure functions.

Everything in the package is written against the types of this module, and this module
imports nothing of the package. Device and server meet only in ``message`` (server to
device) and ``upload`` (device to server): nothing else carries information between them,
so nothing else needs accounting.

Functions are written for *one* client. Batching over clients, loops over rounds, devices,
files and logging belong to :mod:`fedjax_masks.simulation` and above.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np

PyTree = Any
Params = Any
Metrics = Mapping[str, jax.Array]


class State(NamedTuple):
    """All that a simulation carries from round to round.

    Attributes:
      common: What every device holds from the start and nobody ever changes (frozen
        weights, a pre-trained part). Kept once, not once per client.
      server: The server's state.
      clients: The clients' states; every leaf is ``[num_clients, ...]``.
      kept: What the server keeps of each client; every leaf is ``[num_clients, ...]``.
    """

    common: PyTree
    server: PyTree
    clients: PyTree
    kept: PyTree = ()


class ClientData(NamedTuple):
    """One client's examples, as a view into arrays that all clients share.

    Attributes:
      inputs: ``[num_examples, *input_shape]``, uint8 or float32: the whole data set.
      labels: ``int32[num_examples]``.
      rows: ``int32[capacity]``: this client's rows of ``inputs``; only the first ``size``
        are its own, the rest is padding that may point anywhere inside the arrays.
      size: ``int32[]``: how many examples the client has.
      longest: ``int32[]``: the largest ``size`` among the clients that run in step with
        this one. Loops over minibatches run to ``longest``, so that their trip count is
        the same for all clients of a block; what lies beyond ``size`` is padding.
      tier: ``int32[]``: the client's tier, the same for all that run in step with it, so that a
        ``lax.switch`` on it runs one branch.
    """

    inputs: jax.Array
    labels: jax.Array
    rows: jax.Array
    size: jax.Array
    longest: jax.Array
    tier: jax.Array


class Cohort(NamedTuple):
    """The clients of one round, as the server sees them in ``merge``.

    Attributes:
      ids: ``int32[cohort]``: client ids.
      weight: ``float32[cohort]``: number of training examples; 0 for a client whose upload
        must be ignored (it was dropped, or is padding).
    """

    ids: jax.Array
    weight: jax.Array


class ClientIndex(NamedTuple):
    """Which rows of a data set belong to which client (ragged, flat).

    Attributes:
      rows: ``int32[total]``: the rows of client 0, then those of client 1, and so on.
      offsets: ``int32[num_clients]``: where each client's rows start.
      sizes: ``int32[num_clients]``: how many rows each client has.
    """

    rows: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True, eq=False)
class Task:
    """A federated learning problem: a data set and its division among clients.

    Attributes:
      name: The data set's name.
      inputs: ``[num_train, *input_shape]``, uint8 (0 to 255) or float32.
      labels: ``int32[num_train]``.
      test_inputs: ``[num_test, *input_shape]``: the global test set.
      test_labels: ``int32[num_test]``.
      train: Each client's rows of ``inputs``.
      test: Each client's rows of ``test_inputs``: its own test data, with the label
        distribution of its training data.
      num_classes: Number of classes.
      partition: How the data were divided, as written by the user (``"shards:2"``).
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    train: ClientIndex
    test: ClientIndex
    num_classes: int
    partition: str = "iid"

    @property
    def num_clients(self) -> int:
        return len(self.train.sizes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.inputs.shape[1:]


@dataclass(frozen=True)
class Tiers:
    """A division of clients by what their devices can do; each tier may run a program of its own.

    Attributes:
      number: How many tiers there are.
      of: ``(client_ids) -> int32``, of the same shape, in ``[0, number)``; runs on the host.
    """

    number: int = 1
    of: Callable[[np.ndarray], np.ndarray] = lambda ids: ids * 0


ONE_TIER = Tiers()
"""All clients run the same program."""

Predict = Callable[[PyTree, PyTree, PyTree, jax.Array], jax.Array]


class Draw(Protocol):
    """Draws a round's cohort, uniformly and without replacement: ``int32[cohort]``; runs on the host."""

    def __call__(self, index: int, among: np.ndarray | None = None) -> np.ndarray:
        """Of round ``index``, from some clients or from all; the same at every call."""
        ...


def every_round(index: int, draw: Draw) -> np.ndarray:
    """Selects a new cohort for every round, from all clients."""
    return draw(index)


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm, as pure functions over pytrees.

    A constructor such as ``fedavg(model, optimizer, *, ...)`` closes over static choices
    and returns this record; what changes from round to round or from client to client is
    traced. Variants are made by replacing single functions:
    ``fedavg(...)._replace(train=...)``.

    Attributes:
      init: ``(key, task) -> State``.
      send: ``(server, client_id) -> message``; server to device. Runs inside the map over
        clients: what it does not vary per client is never copied per client.
      train: ``(key, common, message, client, data) -> (client, upload, metrics)``; on the
        device, for one client. ``metrics`` is a flat mapping of scalars; ``loss`` is the mean
        training loss. ``steps``, ``examples``, ``slots``, ``flops`` and ``traffic`` are replaced by
        the sums over all trainings by :mod:`fedjax_masks.core.training`, where there is one.
      merge: ``(key, common, server, uploads, cohort) -> server``; on the server. ``uploads``
        is the sum of all partials where ``reduce`` is given, else all uploads stacked on
        axis 0.
      serve: ``(key, common, server, kept, upload) -> (kept, received)``, or None; on the server, for one
        client whose upload has arrived: what the server does for each of them beside the others, with
        what it keeps of it. Runs inside the map over clients. ``reduce`` and ``merge`` get what was
        received in place of the upload.
      reduce: ``(upload, weight) -> partial``, associative by ``+``, or None. With it,
        memory does not grow with the cohort.
      predict: ``(common, server, client, x) -> logits[batch, num_classes]`` of the client's
        own model, or None where every client uses the global model.
      predict_global: ``(common, server, x) -> logits``, or None where no global model exists.
      probes: Further points of measurement: name to a function like ``predict``, evaluated
        like it and reported under ``extra``.
      tiers: Which clients run the same program; all, by default.
      select: ``(index, draw) -> int32[cohort]``: distinct clients, who take part in round ``index``; on
        the host, ahead of the rounds, and therefore a function of its arguments alone.
      report: ``(server) -> metrics`` after a round, where the server itself trains: a flat mapping
        of scalars; ``loss`` is the mean training loss, ``flops`` what the round took.
    """

    init: Callable[[chex.PRNGKey, Task], State]
    send: Callable[[PyTree, jax.Array], PyTree]
    train: Callable[[chex.PRNGKey, PyTree, PyTree, PyTree, ClientData], tuple[PyTree, PyTree, Metrics]]
    merge: Callable[[chex.PRNGKey, PyTree, PyTree, PyTree, Cohort], PyTree]
    serve: Callable[[chex.PRNGKey, PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]] | None = None
    reduce: Callable[[PyTree, jax.Array], PyTree] | None = None
    predict: Predict | None = None
    predict_global: Callable[[PyTree, PyTree, jax.Array], jax.Array] | None = None
    probes: Mapping[str, Predict] = MappingProxyType({})
    tiers: Tiers = ONE_TIER
    select: Callable[[int, Draw], np.ndarray] = every_round
    report: Callable[[PyTree], Metrics] | None = None
