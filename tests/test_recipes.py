"""Sweeps in experiments/ are accepted; small ones give what they expect, and a little of large ones runs."""

import json
from pathlib import Path

import collect
import ecofed_gaps
import expected
import pytest
from common import by_setting, read_lines

from fedjax_masks.core.trees import flat
from fedjax_masks.experiment.config import Config, as_dict, make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.experiment.grid import read_sweep
from fedjax_masks.experiment.sweep import run_sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
RECIPES = sorted(EXPERIMENTS.glob("*.toml"))
TINY = [recipe for recipe in RECIPES if recipe.stem.endswith("-tiny")]
WITH_RESULTS = [recipe for recipe in RECIPES if expected.results_of(recipe).is_file()]


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


def off(recipe, runs):
    """What is not as the recipe expects."""
    return [
        expected.row(line, runs) for line in expected.read_expected(recipe) if not expected.is_met(line, runs)
    ]


def test_runs_are_grouped_by_what_they_are_seeds_of():
    names = ("fedavg-deadline-0", "fedavg-deadline-1", "fedavg,seed=0", "lr=1e-3", "lr=1e-3,seed=2")
    groups = by_setting([{"run": name} for name in names])
    assert {setting: len(runs) for setting, runs in groups.items()} == {
        "fedavg-deadline": 2,
        "fedavg": 1,
        "lr=1e-3": 2,
    }


def test_gaps_are_between_runs_of_the_same_seed():
    accuracies = {"a-0": 0.5, "a-1": 0.7, "b-0": 0.4, "b-1": 0.4, "local-0": None, "c-1": 0.75}
    runs = [
        {"run": name, "seed": int(name[-1]), "last_global_accuracy": value}
        for name, value in accuracies.items()
    ]
    rows = collect.gaps_table(runs, "a").splitlines()[2:]
    assert rows == ["| b | 20.0 ± 127.1 | 2 |", "| c | -5.0 | 1 |"]


def test_gaps_of_a_cut_are_to_its_own_lgl_and_to_fedavg():
    accuracies = {
        ("fedavg", None): 0.5,
        ("lgl", "conv2"): 0.4,
        ("lgl", "conv4"): 0.3,
        ("ecofed", "conv4"): 0.6,
    }
    runs = [
        {"run": f"{name},seed={seed}", "seed": seed, "last_global_accuracy": value}
        | {"algorithm": {"name": name} | ({"split": cut} if cut else {})}
        for (name, cut), value in accuracies.items()
        for seed in (0, 1)
    ]
    rows = ecofed_gaps.table(runs).splitlines()[2:]
    assert rows == [
        "| conv2 | fedavg | 50.0 ± 0.0 | 10.0 ± 0.0 |  | 2 |",
        "| conv2 | lgl | 40.0 ± 0.0 |  | -10.0 ± 0.0 | 2 |",
        "| conv4 | fedavg | 50.0 ± 0.0 | 20.0 ± 0.0 |  | 2 |",
        "| conv4 | lgl | 30.0 ± 0.0 |  | -20.0 ± 0.0 | 2 |",
        "| conv4 | ecofed | 60.0 ± 0.0 | 30.0 ± 0.0 | 10.0 ± 0.0 | 2 |",
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_expects_figures_of_its_own_settings(recipe):
    settings = by_setting([{"run": job.name} for job in read_sweep(recipe)])
    for line in expected.read_expected(recipe):
        assert {line.ours, line.theirs} <= settings.keys()


@pytest.mark.parametrize("recipe", WITH_RESULTS, ids=lambda recipe: recipe.stem)
def test_committed_results_are_complete_and_as_expected(recipe):
    runs = read_lines(expected.results_of(recipe))
    assert sorted(run["run"] for run in runs) == sorted(job.name for job in read_sweep(recipe))
    assert not off(recipe, runs)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TINY, ids=lambda recipe: recipe.stem)
def test_a_small_recipe_runs_and_gives_what_it_expects(recipe, tmp_path):
    jobs = run_sweep(recipe, tmp_path / "out", quiet=True)
    runs = [collect.line(tmp_path / "out" / job.name) for job in jobs]
    assert not off(recipe, runs)


RUNS = [
    {"run": f"{name},seed={seed}", "seed": seed, "bytes": number, "accuracy": 0.1 * seed + 0.01 * number}
    for name, number in (("small", 25), ("whole", 100))
    for seed in (1, 0)
]


def write(folder, text):
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("exact: bytes of small / whole = 0.25 +- 0", [0.25, 0.25]),
        ("trend: accuracy of small - whole = -0.75 +- 0.01", [-0.75]),
    ],
)
def test_what_is_exact_holds_for_each_seed_and_a_trend_in_the_mean(tmp_path, line, values):
    (found,) = expected.read_expected(write(tmp_path, f"# expected {line}\nrounds = 3\n"))
    assert expected.result_values(found, RUNS) == pytest.approx(values)


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="about the same"):
        expected.read_expected(write(tmp_path, "# expected trend: about the same\n"))


@pytest.mark.parametrize(("share", "code"), [("0.25", 0), ("0.26", 1)])
def test_the_command_ends_with_1_if_something_is_off(tmp_path, capsys, share, code):
    recipe = write(tmp_path, f"# expected exact: bytes of small / whole = {share} +- 0.005\n")
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, RUNS)) + "\n")
    assert expected.main(recipe, tmp_path / "runs.jsonl") == code
    assert ("off" in capsys.readouterr().out) == bool(code)


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
