"""What a simulation reports: per client and round, and per evaluation."""

from typing import NamedTuple

import numpy as np

from fedjax_masks.costs.clock import READINGS


class RoundMetrics(NamedTuple):
    """What happened to each client of each round, by id; arrays lead with ``[rounds, cohort]``.

    Attributes:
      ids: int32: client ids.
      weight: float32: number of training examples; 0 for a dropped client.
      dropped: bool: True where the client's update was left out: it was not finite, came too late,
        or never came.
      trained: bool: True where the client trained on an example and kept what it learned: it was there,
        and its update was finite, even if it came too late.
      bytes_up: int64: bytes of the upload, rounded up to whole bytes; 0 for one that never came.
      bytes_down: int64: bytes of the message.
      train: The algorithm's own metrics, float32, and with a population those of
        :mod:`fedjax_masks.costs.clock`.
      server: The server's own, float32, ``[rounds]``; with a population ``seconds`` and ``joules``
        of the rounds, float64.
    """

    ids: np.ndarray
    weight: np.ndarray
    dropped: np.ndarray
    trained: np.ndarray
    bytes_up: np.ndarray
    bytes_down: np.ndarray
    train: dict[str, np.ndarray]
    server: dict[str, np.ndarray]

    def mean(self, name: str) -> np.ndarray:
        """A metric's mean over each round's cohort without the dropped: ``float64[rounds]``.

        A reading of :mod:`fedjax_masks.costs.clock` is of the dropped, too: it is that over the whole
        cohort.
        """
        kept = ~self.dropped | (name in READINGS)
        total = np.where(kept, self.train[name], 0).sum(1, dtype=np.float64)
        return total / np.maximum(kept.sum(1), 1)


class Evaluation(NamedTuple):
    """Accuracies in [0, 1] at one moment.

    Attributes:
      global_accuracy: The global model on the global test set, or None.
      ids: ``int[evaluated]``: the evaluated clients, sorted; all, unless a sample was asked for.
      personal: ``float64[evaluated]``: each client's own model on its own test data (the
        global model where clients have none of their own); NaN for a client without test data.
      probes: The algorithm's further points of measurement, each like ``personal``.
    """

    global_accuracy: float | None
    ids: np.ndarray
    personal: np.ndarray
    probes: dict[str, np.ndarray]


class Stats(NamedTuple):
    """How the simulation itself did.

    Attributes:
      compile_seconds: Time spent tracing and compiling.
      num_compilations: Programs compiled for rounds: 1, and one more for every plan that would
        not have fitted into memory.
      padding_efficiency: Useful example slots over all example slots computed so far; 1.0 is
        no waste. Counts the padding inside blocks and to whole batches.
    """

    compile_seconds: float
    num_compilations: int
    padding_efficiency: float


class Padding(NamedTuple):
    """Counts what the programs stepped over.

    Attributes:
      examples: Examples trained on.
      slots: Places for examples, of which the rest was padding.
    """

    examples: float = 0.0
    slots: float = 0.0

    def plus(self, metrics: RoundMetrics) -> "Padding":
        """With a chunk of rounds."""
        examples, slots = (np.sum(metrics.train.get(name, 0.0)) for name in ("examples", "slots"))
        return Padding(self.examples + float(examples), self.slots + float(slots))

    @property
    def efficiency(self) -> float:
        """The share of slots with an example; 1.0 before any round."""
        return self.examples / self.slots if self.slots else 1.0
