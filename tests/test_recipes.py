"""The sweeps in ``experiments`` are accepted, and the settings of the largest run, on little."""

from pathlib import Path

import pytest

from fedjax_masks.config import Config, as_dict, flat, make_config
from fedjax_masks.experiment import run_experiment
from fedjax_masks.grid import read_sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
LITTLE = {
    "data.name": "digits",
    "data.partition": "shards:2",
    "data.clients": 6,
    "data.examples_per_client": 12,
    "data.test_per_client": 10,
    "model.name": "cnn",
    "cohort": 3,
    "rounds": 2,
    "eval_every": 2,
    "training.epochs": 1,
    "pretraining.epochs": 1,
    "pretraining.classes": 2,
    "pretraining.per_class": 12,
}


def little(config: Config) -> Config:
    values = {key: value for key, value in flat(as_dict(config)).items() if value is not None}
    kept = {key: value for key, value in values.items() if not key.startswith(("model.", "data."))}
    return make_config(kept | LITTLE)


LARGEST = [EXPERIMENTS / f"two-classes-{name}.toml" for name in ("cifar10", "fashion_mnist")]
SETTINGS = {job.setting: job.config for job in read_sweep(LARGEST[0])}


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_accepted(path):
    assert read_sweep(path)


def test_the_two_largest_compare_the_same():
    one, other = ([(job.name, little(job.config)) for job in read_sweep(path)] for path in LARGEST)
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_runs(name, tmp_path):
    run = run_experiment(little(SETTINGS[name]), tmp_path / "run", quiet=True)
    last = run.records[-1]
    assert last["round"] == 2
    assert 0 <= last["personal_accuracy_mean"] <= 1
