"""Controls of the experiment on MPFL's sparsity: masks, starts, pairs of seeds, result files."""

import json
import sys
from dataclasses import asdict, replace

import jax
import mpfl_curves
import mpfl_models
import mpfl_sparsity
import mpfl_start
import mpfl_tables
import numpy as np
import pytest

import fedjax_masks as fm


@pytest.fixture(scope="module")
def task():
    digits = fm.load_task("digits", clients=4, examples_per_client=10, seed=0)
    images = digits.inputs, digits.test_inputs
    inputs, test_inputs = (np.repeat(np.repeat(x, 4, 1), 4, 2)[:, 2:30, 2:30] for x in images)
    return replace(digits, inputs=inputs, test_inputs=test_inputs)


@pytest.fixture(scope="module")
def model(task):
    return mpfl_models.make_model(task)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def as_sets(filters):
    return {(name, index) for name, mask in filters.items() for index in np.flatnonzero(mask)}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_controls_prune_the_same_share_of_every_layer(model, params, share):
    smallest = mpfl_models.smallest_pruned(model, params, share)
    for filters in (
        smallest,
        mpfl_models.largest_pruned(model, params, share),
        mpfl_models.random_pruned(model, share, 0),
    ):
        assert {name: int(mask.sum()) for name, mask in filters.items()} == {
            "conv1": round(10 * (1 - share)),
            "conv2": round(20 * (1 - share)),
        }
    norms = mpfl_models.norms_of(model, params)
    for name, mask in smallest.items():
        assert norms[name][mask].min() > norms[name][~mask].max()


def test_inverted_norms_keep_what_norms_prune(model, params):
    smallest = mpfl_models.smallest_pruned(model, params, 0.5)
    largest = mpfl_models.largest_pruned(model, params, 0.5)
    assert all((mask ^ largest[name]).all() for name, mask in smallest.items())
    assert mpfl_models.overlap(smallest, largest) == 0


def test_random_masks_are_nested_and_vary_by_seed(model):
    some, few, others = (
        as_sets(mpfl_models.random_pruned(model, share, seed))
        for share, seed in ((0.3, 1), (0.7, 1), (0.7, 2))
    )
    assert few < some
    assert few != others


def test_the_overlap_is_a_share_of_the_remaining_filters(model):
    first, second = (
        mpfl_models.random_pruned(model, share, share_seed) for share, share_seed in ((0.3, 1), (0.5, 2))
    )
    expected = len(as_sets(first) & as_sets(second)) / len(as_sets(first))
    assert mpfl_models.overlap(first, second) == pytest.approx(expected)


def test_public_examples_are_nobodys(task):
    numbered = replace(task, inputs=np.arange(len(task.labels)))
    public = mpfl_start.public_task(numbered, 100, seed=0)
    assert len(public.inputs) == 100
    assert not np.isin(public.inputs, task.train.rows).any()
    assert (public.labels == task.labels[public.inputs]).all()
    assert public.train.rows.size == 0


def line(curve, seed, accuracy, **more):
    return {"curve": curve, "iteration": 7, "seed": seed, "sparsity": 0.7, "accuracy": accuracy, **more}


def test_gaps_are_between_curves_of_the_same_seed():
    lines = [
        line("mpfl", 0, 0.5, initial_overlap=1.0),
        line("mpfl", 1, 0.75, initial_overlap=0.5),
        line("random", 1, 0.5),
        line("random", 0, 0.5),
        line("inverted", 2, 0.1),
    ]
    row = mpfl_tables.gaps_table({"file": lines}).splitlines()[2]
    *_, random, inverted, seeds, overlap = [cell.strip() for cell in row.strip("|").split("|")]
    assert (random, inverted, seeds, overlap) == ("12.5 ± 158.8", "n/a", "2", "75 ± 318")


def test_a_file_of_another_setting_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "lines.jsonl"
    out.write_text(json.dumps(line("mpfl", 0, 0.5) | asdict(mpfl_curves.Setting(rounds=7))) + "\n")
    monkeypatch.setattr(sys, "argv", ["mpfl_sparsity.py", "run", "--out", str(out)])
    with pytest.raises(SystemExit, match="rounds=7"):
        mpfl_sparsity.main()


@pytest.mark.slow
def test_every_curve_has_a_point(task, monkeypatch, tmp_path):
    monkeypatch.setattr(fm, "load_task", lambda *args, **options: task)
    monkeypatch.setenv("FEDJAX_MASKS_CACHE", str(tmp_path))
    setting = mpfl_curves.Setting(
        rounds=2, search_epochs=1, pretrained="public", pretrained_epochs=1, public=60
    )
    seed = mpfl_curves.Seed(setting, 0, iterations=5)
    points = seed.points(list(mpfl_curves.CURVES), [5])
    lines = {curve: run() for (curve, _), run in points.items()}
    assert {line["sparsity"] for curve, line in lines.items() if curve != "dense"} == {0.5}
    assert lines["initial"]["initial_overlap"] == 1
    assert lines["inverted"]["initial_overlap"] == 0
    assert lines["fedavg-mask"]["bytes_total"] == lines["fedavg-then-prune"]["bytes_total"]
    assert (
        lines["dense"]["bytes_total"] + lines["random"]["bytes_total"] == lines["fedavg-mask"]["bytes_total"]
    )
    search = lines["mpfl"]["bytes_total"] - lines["random"]["bytes_total"]
    assert 0 < search < 1000
    # The search starts from the weights that every mask is scored from.
    algorithm = fm.mpfl_search(seed.model, seed.optimizer)
    state = fm.make_simulation(algorithm, task, cohort=4, seeds=(0,)).init()
    jax.tree.map(np.testing.assert_array_equal, state.server.initial, seed.initial)
