"""Reports of a simulation: metrics per client and round, evaluations, and statistics."""

from typing import NamedTuple

import numpy as np

from fedjax_masks.costs.clock import READINGS


class RoundMetrics(NamedTuple):
    """The metrics of each client of each round, in the order of ids; arrays are ``[rounds, cohort]``.

    Attributes:
      ids: int32: client ids.
      weight: float32: number of training examples; 0 for a dropped client.
      dropped: bool: True where the client's update was left out: it was not finite, came too late,
        or never came.
      trained: bool: True where the client trained on an example and kept its new state: the client was
        present, and its update was finite, even if the update came too late.
      bytes_up: int64: bytes of the upload, rounded up; 0 for an upload that never came.
      bytes_down: int64: bytes of the message, rounded up.
      train: The algorithm's metrics of clients, float32, and with a population the readings of
        :mod:`fedjax_masks.costs.clock`.
      server: The server's metrics, float32 ``[rounds]``; with a population also ``seconds`` and ``joules``
        of the rounds, float64.
      idle_slots: float64 ``[rounds]``: places for examples that were computed for no client, to fill blocks.
    """

    ids: np.ndarray
    weight: np.ndarray
    dropped: np.ndarray
    trained: np.ndarray
    bytes_up: np.ndarray
    bytes_down: np.ndarray
    train: dict[str, np.ndarray]
    server: dict[str, np.ndarray]
    idle_slots: np.ndarray | float = 0.0

    def mean(self, name: str) -> np.ndarray:
        """A metric's mean over each round's cohort without dropped clients: ``float64[rounds]``.

        The mean of a reading of :mod:`fedjax_masks.costs.clock` includes dropped clients.
        """
        counts = ~self.dropped | (name in READINGS)
        total = np.where(counts, self.train[name], 0).sum(1, dtype=np.float64)
        return total / np.maximum(counts.sum(1), 1)


class Evaluation(NamedTuple):
    """Accuracies in [0, 1] of one state.

    Attributes:
      global_accuracy: Accuracy of the global model on the global test set, or None.
      ids: ``int[evaluated]``: the evaluated clients, sorted: all clients, or a sample.
      personal: ``float64[evaluated]``: accuracy of each client's own model on its own test data (of the
        global model where clients have no models); NaN for a client without test data.
      probes: Accuracies of the algorithm's further models, each like ``personal``.
    """

    global_accuracy: float | None
    ids: np.ndarray
    personal: np.ndarray
    probes: dict[str, np.ndarray]


class Stats(NamedTuple):
    """Statistics of the simulation itself.

    Attributes:
      compile_seconds: Seconds of tracing and compiling.
      num_compilations: Programs compiled for rounds: 1, and one more for every plan that did not fit into
        memory, or was slower by estimate.
      padding_efficiency: The share of example slots computed so far that held an example; 1.0 is no waste.
        All padding counts: to whole minibatches, to the largest client of a block, and to whole blocks.
    """

    compile_seconds: float
    num_compilations: int
    padding_efficiency: float


class Padding(NamedTuple):
    """Counts of examples and of padding.

    Attributes:
      examples: Examples of training.
      slots: Places for examples in the computed minibatches.
    """

    examples: float = 0.0
    slots: float = 0.0

    def plus(self, metrics: RoundMetrics) -> "Padding":
        """The counts after another chunk of rounds."""
        examples, slots = (np.sum(metrics.train.get(name, 0.0)) for name in ("examples", "slots"))
        slots += np.sum(metrics.idle_slots)
        return Padding(self.examples + float(examples), self.slots + float(slots))

    @property
    def efficiency(self) -> float:
        """The share of slots with an example; 1.0 before the first round."""
        return self.examples / self.slots if self.slots else 1.0
