"""The curves of ``mpfl_sparsity.py``: masks of filters, and the accuracy after training under each."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import mpfl_models as models
from mpfl_runs import SHARE, Search, Trained, pooled, search, train
from mpfl_start import starting_model

import fedjax_masks as fm
from fedjax_masks.models import Model

Line = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The setting of a result file; the fields are options of the command line and keys of the lines.

    A line that lacks a key has its default.
    """

    dataset: str = "fashion_mnist"
    partition: str = "iid"
    clients: int = 10
    examples: int = 400
    rounds: int = 20
    search_epochs: int = 2
    model: str = "lenet-half"
    optimizer: str = "adam"
    lr: float = 2e-3
    momentum: float = 0.0
    pretrained: str = "random"
    pretrained_epochs: int = 20
    public: int = 4000
    score: str = "federated"


class Curve(NamedTuple):
    """A curve: masks, and the training that scores each.

    Attributes:
      masks: A method of :class:`Seed` that makes the mask of an iteration.
      continues: Whether training continues from FedAvg's weights instead of the initial ones.
      central: Whether training has all data in one place, whatever the setting.
    """

    masks: str
    continues: bool = False
    central: bool = False


CURVES: Mapping[str, Curve] = {
    "mpfl": Curve("by_votes"),
    "fedavg-mask": Curve("by_fedavg"),
    "fedavg-then-prune": Curve("by_fedavg", continues=True),
    "central": Curve("by_one_client"),
    "mpfl-central-score": Curve("by_votes", central=True),
    "initial": Curve("by_initial_norms"),
    "inverted": Curve("by_inverted_norms"),
    "random": Curve("by_chance"),
}
"""All curves by name, but for the whole model, which is one point, ``dense``."""


class Seed:
    """The runs of one seed of a setting; each runs when a point first needs it."""

    def __init__(
        self, setting: Setting, seed: int, *, iterations: int = 9, data_dir: str | None = None
    ) -> None:
        """Loads the data and makes the model.

        Args:
          setting: The setting.
          seed: The seed of the partition, the start, training and random masks.
          iterations: The iterations of every search.
          data_dir: The folder of data sets.
        """
        self.setting, self.seed, self.iterations = setting, seed, iterations
        self.task = fm.load_task(
            setting.dataset,
            clients=setting.clients,
            partition=setting.partition,
            examples_per_client=setting.examples,
            data_dir=data_dir,
            seed=seed,
        )
        self.model = starting_model(
            setting.model,
            self.task,
            source=setting.pretrained,
            epochs=setting.pretrained_epochs,
            public=setting.public,
            seed=seed,
        )
        self.optimizer = models.optimizer(setting.optimizer, setting.lr, setting.momentum)

    @cached_property
    def initial(self) -> Any:
        """The initial weights, the same for searches and training."""
        algorithm = fm.fedavg(self.model, self.optimizer)
        simulation = fm.make_simulation(algorithm, self.task, cohort=1, seeds=(self.seed,))
        return jax.device_get(simulation.init().server.params)

    @cached_property
    def dense(self) -> Trained:
        """The whole model after FedAvg."""
        return self._train(self.model, self.initial, self.task)

    @cached_property
    def votes(self) -> Search:
        """The search of MPFL."""
        return self._search(self.task)

    @cached_property
    def one_client(self) -> Search:
        """The search of MPFL by a single client that holds all data."""
        return self._search(pooled(self.task))

    def by_votes(self, iteration: int) -> tuple[models.Filters, int]:
        """MPFL's mask, and the bytes of its search."""
        return self.votes.masks[iteration], self.votes.bytes_total[iteration]

    def by_one_client(self, iteration: int) -> tuple[models.Filters, int]:
        """The mask of central pruning; no bytes."""
        return self.one_client.masks[iteration], 0

    def by_fedavg(self, iteration: int) -> tuple[models.Filters, int]:
        """The mask of the norms after FedAvg, and FedAvg's bytes."""
        filters = models.smallest_pruned(self.model, self.dense.params, SHARE * iteration)
        return filters, self.dense.bytes_total

    def by_initial_norms(self, iteration: int) -> tuple[models.Filters, int]:
        """The mask of the norms of the initial weights: no search, no bytes."""
        return models.smallest_pruned(self.model, self.initial, SHARE * iteration), 0

    def by_inverted_norms(self, iteration: int) -> tuple[models.Filters, int]:
        """A mask that keeps the filters with the smallest norms of the initial weights."""
        return models.largest_pruned(self.model, self.initial, SHARE * iteration), 0

    def by_chance(self, iteration: int) -> tuple[models.Filters, int]:
        """A mask of random filters."""
        return models.random_pruned(self.model, SHARE * iteration, self.seed), 0

    def points(self, curves: list[str], iterations: list[int]) -> dict[tuple[str, int], Callable[[], Line]]:
        """The points by curve and iteration: a function runs each."""
        points: dict[tuple[str, int], Callable[[], Line]] = {("dense", 0): self._score_dense}
        for t in iterations:
            points |= {(name, t): lambda name=name, t=t: self._score(CURVES[name], t) for name in curves}
        return points

    def _score_dense(self) -> Line:
        central = self.setting.score == "central"
        trained = self._train(self.model, self.initial, pooled(self.task)) if central else self.dense
        total = None if central else trained.bytes_total
        return {"sparsity": 0.0, "accuracy": trained.accuracy, "bytes_total": total}

    def _score(self, curve: Curve, iteration: int) -> Line:
        filters, before = getattr(self, curve.masks)(iteration)
        start = self.dense.params if curve.continues else self.initial
        central = curve.central or self.setting.score == "central"
        task = pooled(self.task) if central else self.task
        trained = self._train(*models.compacted(self.model, start, filters), task)
        return {
            "sparsity": models.sparsity(filters),
            "accuracy": trained.accuracy,
            "bytes_total": None if central else before + trained.bytes_total,
            "initial_overlap": models.overlap(filters, self.by_initial_norms(iteration)[0]),
        }

    def _search(self, task: fm.Task) -> Search:
        epochs = self.setting.search_epochs
        return search(
            self.model, task, self.optimizer, seed=self.seed, epochs=epochs, iterations=self.iterations
        )

    def _train(self, model: Model, params: Any, task: fm.Task) -> Trained:
        return train(model, params, task, self.optimizer, seed=self.seed, rounds=self.setting.rounds)


def setting_of(line: Line) -> Line:
    """The setting of a line of a result file, with the defaults of keys that it lacks."""
    return {key: line.get(key, default) for key, default in asdict(Setting()).items()}
