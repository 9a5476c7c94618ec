"""Comparing series over seeds: means, the Pareto front, costs of a target, tests, tables, partitions."""

import csv
import re

import numpy as np
import pytest
from handwritten import COHORT, make_run, read
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedjax_masks.analysis import compare, group, load_runs, report, write_report
from fedjax_masks.analysis.accuracy import accuracy_figures
from fedjax_masks.analysis.curves import BYTES, GLOBAL, PERSONAL, ROUNDS, front_of, mean_curve, pareto_front
from fedjax_masks.analysis.export import escape, write_tables
from fedjax_masks.analysis.partition import divisions_of, partition_figure
from fedjax_masks.analysis.records import is_diverged
from fedjax_masks.analysis.seeds import series_table
from fedjax_masks.analysis.significance import holm, paired, significance_tables
from fedjax_masks.analysis.table import comparison_table, is_best
from fedjax_masks.analysis.targets import common_target, cost_of_target, target_tables
from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import label_histogram, load_task

PERSONALS = {"fedavg": (0.70, 0.74, 0.69), "fedmask": (0.81, 0.86, 0.80), "local": (0.75, 0.70, 0.72)}
TRAFFIC = {"fedavg": 1_000_000, "fedmask": 30_000, "local": 0}
SHARES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def coarse_images(monkeypatch):
    """Images are coarse here, since no test looks at their pixels (tests/test_report.py does)."""
    monkeypatch.setattr(report, "_PNG_DPI", 20)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A directory of three algorithms by three seeds, as deep as a sweep makes them."""
    root = tmp_path_factory.mktemp("sweep")
    for name, personals in PERSONALS.items():
        for seed, personal in enumerate(personals):
            make_run(
                root / name / f"seed-{seed}",
                algorithm=name,
                personal=personal,
                global_=None if name == "local" else personal - 0.05,
                up=TRAFFIC[name],
                down=TRAFFIC[name],
                seed=seed,
                spent={"client_flops_total": 3e9, "sim_seconds": 2.5} if name != "local" else {},
            )
    return root


@pytest.fixture(scope="module")
def series(sweep):
    return group(load_runs([sweep]))


def test_runs_are_found_at_any_depth_each_once_and_by_names_that_differ(tmp_path):
    for place in ("a/seed-0", "a/seed-1", "b/deep/seed-0", "c/deep/seed-0"):
        make_run(tmp_path / place, rounds=5)
    make_run(tmp_path / "a/seed-0/checkpoints/inner", rounds=5)  # part of a run, whatever it looks like
    runs = load_runs([tmp_path / "c", tmp_path, tmp_path / "a" / "seed-1"])
    assert [run.name for run in runs] == ["c/deep/seed-0", "a/seed-0", "seed-1", "b/deep/seed-0"]


@pytest.mark.parametrize("paths", [[], ["empty"], ["nowhere"]])
def test_where_there_is_no_run_nothing_is_read(tmp_path, paths):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"name at least one|no config\.json|no such directory"):
        load_runs([tmp_path / path for path in paths])


def test_curves_are_means_with_students_interval_over_the_rounds_that_all_seeds_have(tmp_path):
    paths = [make_run(tmp_path / str(seed), personal=0.5 + 0.1 * seed, seed=seed) for seed in range(3)]
    lines = (paths[0] / "metrics.jsonl").read_text().splitlines()
    (paths[0] / "metrics.jsonl").write_text("\n".join(lines[1:]) + "\n")
    (member,) = group(load_runs(paths))
    curve = mean_curve(member, PERSONAL, BYTES)
    assert curve.rounds.tolist() == [10, 15, 20]
    assert curve.cost == pytest.approx(1_500_000 * COHORT * curve.rounds)
    assert curve.accuracy == pytest.approx(0.6 * curve.rounds / 20)
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem([0.5, 0.6, 0.7]))
    assert 2 * curve.half_width[-1] == pytest.approx(high - low)
    alone = group(load_runs(paths[1:2]))[0]
    assert np.isnan(mean_curve(alone, PERSONAL, ROUNDS).half_width).all()


@given(SHARES)
def test_the_front_is_what_nothing_beats(points):
    costs, accuracies = zip(*points)
    front = pareto_front(costs, accuracies)

    def beaten(point):
        return any(
            cost <= point[0] and accuracy >= point[1] and (cost, accuracy) != point
            for cost, accuracy in points
        )

    assert {points[index] for index in front} == {point for point in points if not beaten(point)}
    assert [costs[index] for index in front] == sorted({costs[index] for index in front})


def test_the_front_is_marked_in_the_first_figure_and_named_in_the_table(series, sweep, tmp_path):
    assert front_of(series, PERSONAL).labels == ("local", "fedmask")
    assert front_of(series, GLOBAL).labels == ("fedmask",)
    rows = {row["label"]: row["front"] for row in series_table(series).rows}
    assert rows == {"fedavg": None, "fedmask": "personal + global", "local": "personal"}
    _, page = read(write_report([sweep], tmp_path / "cmp.html"))
    figures = [name for name in page.ids if re.fullmatch(r"accuracy-\w+", name)]
    assert figures == ["accuracy-bytes", "accuracy-rounds", "accuracy-flops", "accuracy-seconds"]
    assert "personal accuracy and these bytes: local, fedmask." in " ".join(page.words)


def test_the_summary_has_a_row_per_series_with_means_and_intervals(series):
    rows = {row["label"]: row for row in series_table(series).rows}
    for name, personals in PERSONALS.items():
        assert rows[name]["personal_accuracy"] == pytest.approx(np.mean(personals))
        half = stats.t.ppf(0.975, 2) * stats.sem(personals)
        assert rows[name]["personal_accuracy_ci95"] == pytest.approx(half)
        assert rows[name]["seeds"] == 3
    assert rows["local"]["global_accuracy"] is None
    assert rows["fedavg"]["client_gflops"] == pytest.approx(3 / COHORT)


def test_a_targets_cost_is_that_of_the_first_evaluation_that_reached_it(series):
    fedmask = next(member for member in series if member.label == "fedmask")
    run = fedmask.runs[0]  # 0.81 at round 20, in equal steps
    assert cost_of_target(run, PERSONAL, 0.5, ROUNDS) == 15
    assert cost_of_target(run, PERSONAL, 0.5, BYTES) == 15 * COHORT * 60_000
    assert cost_of_target(run, PERSONAL, 0.9, ROUNDS) is None
    table = target_tables(series, 0.72)[0]
    text = {row["label"]: [column.text(row) for column in table.columns] for row in table.rows}
    assert text["fedavg"][0] == "1 of 3 seeds"
    assert text["fedmask"][:2] == ["20", "4.80 MB"]
    assert text["local"][0] == "2 of 3 seeds"


@pytest.mark.parametrize(("target", "cell"), [(0.99, "not reached"), (0.01, ">5<")])
def test_the_page_says_when_a_target_was_reached_though_all_reached_it_alike(tmp_path, target, cell):
    for name in ("fedavg", "fedmask"):
        make_run(tmp_path / "runs" / name, algorithm=name, personal=0.7)
    page = write_report([tmp_path / "runs"], tmp_path / "two.html", target=target).read_text("utf-8")
    tables = re.findall(r'<section id="target-.*?</section>', page, re.DOTALL)
    assert [len(re.findall(cell, table)) >= 2 for table in tables] == [True, True]  # personal, global


def test_the_default_target_is_within_reach_of_half_of_the_series(series):
    personal, global_ = target_tables(series)
    assert {row["target"] for row in personal.rows} == {0.68}  # 95 % of local's 0.723
    assert {row["target"] for row in global_.rows} == {0.73}  # of two series the better
    assert "95 %" in personal.note
    assert "95 %" not in target_tables(series, 0.5)[0].note


def test_the_paired_test_is_scipys(series):
    (personal, global_) = significance_tables(series)
    rows = {row["label"]: row for row in personal.rows}
    assert list(rows) == ["fedmask", "local"]
    for name, row in rows.items():
        expected = stats.ttest_rel(PERSONALS[name], PERSONALS["fedavg"])
        assert row["p"] == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval()
        assert (row["difference"], 2 * row["half_width"]) == pytest.approx(((low + high) / 2, high - low))
    assert (rows["fedmask"]["verdict"], rows["local"]["verdict"]) == ("better", "no difference shown")
    assert "2 comparisons" in personal.note
    assert [row["label"] for row in global_.rows] == ["fedmask"]


def test_only_seeds_in_common_are_compared(tmp_path):
    seeds = {"fedavg": (0, 1, 2), "adp": (2, 1, 7)}
    for name, own in seeds.items():
        for seed in own:
            make_run(tmp_path / name / str(seed), algorithm=name, personal=0.5 + 0.01 * seed, seed=seed)
    table = significance_tables(group(load_runs([tmp_path])))[0]
    assert [(row["seeds"], row["difference"], row["p"]) for row in table.rows] == [(2, 0.0, 1.0)]
    assert significance_tables(group(load_runs([tmp_path / "adp"]))) == []


def test_the_baseline_is_the_users_choice(series):
    assert "local in personal" in significance_tables(series, "local")[0].title
    best = significance_tables(series, "best")[0]
    assert "Difference from fedmask" in best.title
    assert "which favors it" in best.note
    with pytest.raises(UserError, match=r"baseline='fedmsk'.*did you mean 'fedmask'"):
        significance_tables(series, "fedmsk")


def test_a_difference_without_spread_is_certain_and_no_difference_is_none():
    assert paired([0.75, 0.5], [0.5, 0.25]).p == 0
    assert paired([0.5, 0.5], [0.5, 0.5])[1:] == (0.0, 0.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_corrected_values_are_no_smaller_keep_the_order_and_stay_probabilities(values):
    corrected = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, corrected))
    assert corrected[int(np.argmin(values))] == pytest.approx(min(1, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_tables_are_written_as_numbers_and_as_latex(series, tmp_path):
    tables = compare(series, target=0.6)
    paths = write_tables(tables, series, tmp_path / "new" / "tables")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "new" / "tables").iterdir()}
    folder = paths[0].parent
    rows = list(csv.DictReader((folder / "summary.csv").read_text("utf-8").splitlines()))
    assert float(rows[1]["personal_accuracy"]) == pytest.approx(np.mean(PERSONALS["fedmask"]))
    assert rows[2]["global_accuracy"] == ""
    points = list(csv.DictReader((folder / "curves.csv").read_text("utf-8").splitlines()))
    assert len(points) == 5 * 4  # three series with personal accuracy, two with global, four evaluations
    last = next(p for p in points if (p["label"], p["accuracy"], p["rounds"]) == ("fedavg", "global", "20.0"))
    assert float(last["bytes"]) == 20 * COHORT * 2_000_000
    assert float(last["flops"]) == pytest.approx(60e9)
    clients = list(csv.DictReader((folder / "clients.csv").read_text("utf-8").splitlines()))
    assert len(clients) == 9 * 10
    for table in tables:
        text = (folder / f"{table.slug}.tex").read_text("utf-8")
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(body) == 1 + len(table.rows)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.columns)}
        assert not re.search(r"(?<!\\)[%#_]", "\n".join(body))
        assert "".join(body).isascii()
    assert r"\textbf{82.3 $\pm$ 8.0 \%}" in (folder / "summary.tex").read_text("utf-8")


def test_latex_prints_what_users_write():
    assert escape("a_b&50%{^~\\}") == (r"a\_b\&50\%\{\textasciicircum{}\textasciitilde{}\textbackslash{}\}")


def test_the_picture_shows_the_runs_own_division(sweep):
    divisions, missing = divisions_of(load_runs([sweep]))
    assert missing == []
    (division,) = divisions
    counts = label_histogram(load_task("digits", clients=10, partition="shards:2"))
    np.testing.assert_array_equal(division.counts, counts)
    drawn = partition_figure(divisions)
    (cells,) = drawn.figure.axes[0].collections
    assert len(cells.get_paths()) == (counts > 0).sum()
    darkest = cells.get_facecolor()[:, 3].argmax()
    column, row = cells.get_paths()[darkest].vertices[0].astype(int)
    assert counts[column, row] == counts.max()
    assert f"the darkest cell has {counts.max()}." in drawn.caption


def test_data_that_are_not_here_are_not_fetched_but_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", data="mnist")]
    text, page = read(write_report(paths, tmp_path / "cmp.html"))
    assert "partition" in page.ids
    remark = "The division of the data is not shown, as they could not be loaded: mnist, shards:2"
    assert remark in " ".join(page.words)
    assert text.count("<title>") == 1


def test_what_is_on_different_data_is_compared_apart(tmp_path):
    for data, gain in (("digits", 0.0), ("mnist", 0.2)):
        for name, personal in (("fedavg", 0.5), ("adp", 0.6)):
            for seed in range(2):
                make_run(
                    tmp_path / data / name / str(seed),
                    algorithm=name,
                    personal=personal + gain + 0.01 * seed,
                    global_=None,
                    up=2_000_000 if name == "adp" else 1_000,
                    data=data,
                    seed=seed,
                )
    series = group(load_runs([tmp_path]))
    tests = significance_tables(series)
    assert [table.slug for table in tests] == [
        "significance-personal-digits-shards-2",
        "significance-personal-mnist-shards-2",
    ]
    assert [[row["seeds"] for row in table.rows] for table in tests] == [[2], [2]]
    assert [row["difference"] for table in tests for row in table.rows] == pytest.approx([0.1, 0.1])
    assert [{row["target"] for row in table.rows} for table in target_tables(series)] == [{0.57}, {0.76}]
    # On digits nothing is beaten by what ran on the easier data.
    assert {row["front"] for row in series_table(series).rows} == {"yes"}


def test_many_series_have_whiskers_and_a_panel_each(tmp_path):
    names = ("fedavg", "fedprox", "scaffold", "fednova", "adp", "mpfl", "fedskel", "ecofed")
    for place, name in enumerate(names):
        for seed in range(2):
            personal = 0.5 + 0.02 * place + 0.03 * seed
            make_run(tmp_path / name / str(seed), algorithm=name, personal=personal, global_=None, seed=seed)
    written = write_report([tmp_path], tmp_path / "out" / "cmp.html")
    text, page = read(written)
    assert "seed-bands" in page.ids
    assert "whiskers at their ends" in text
    assert (written.parent / "cmp_figures" / "seed-bands.png").exists()
    looks = {(member.color, member.marker, str(member.dash)) for member in group(load_runs([tmp_path]))}
    assert len(looks) == len(names)


def test_from_the_command_line(sweep, tmp_path, capsys):
    page, tables = tmp_path / "cmp.html", tmp_path / "tables"
    assert (
        main.main(["report", str(sweep), "--out", str(page), "--target", "0.6", "--baseline", "local"]) == 0
    )
    assert "82.3 ± 8.0 %" in capsys.readouterr().out
    words = " ".join(read(page)[1].words)
    assert "To 60 % personal accuracy" in words
    assert "Difference from local in personal accuracy" in words
    assert not tables.exists()
    assert main.main(["compare", str(sweep), "--tables", str(tables)]) == 0
    out = capsys.readouterr().out
    assert "To 68 % personal accuracy" in out
    assert "Difference from fedavg in personal accuracy" in out
    assert [path.suffix for path in tables.iterdir()].count(".tex") == 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--target", "80"], "target=80"),
        (["--target", "nan"], "target=nan"),
        (["--baseline", "nobody"], "baseline='nobody'"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(sweep, tmp_path, capsys, argv, message):
    out = tmp_path / "out" / "cmp.html"
    assert main.main(["report", str(sweep), "--out", str(out), *argv]) == 2
    _, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.parent.exists()


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Two methods of which not all clients have trained, by two seeds, and a run that does not tell."""
    root = tmp_path_factory.mktemp("partly")
    for seed in range(2):
        for name, everybody, mean in (("fedskel", 0.55, 0.9), ("fedavg", 0.6, 0.7)):
            make_run(
                root / name / str(seed),
                algorithm=name,
                personal=everybody,
                global_=None,
                trained=(4 + seed, mean + 0.01 * seed),
                up=1_000_000,
                seed=seed,
            )
    make_run(root / "old", algorithm="adp", personal=0.5, global_=None, up=2_000_000)
    return root


def test_methods_are_compared_on_the_clients_that_trained(partly, tmp_path, capsys):
    series = {member.label: member for member in group(load_runs([partly]))}
    rows = {row["label"]: row for row in series_table(list(series.values())).rows}
    assert rows["fedskel"]["personal_accuracy"] == pytest.approx(0.905)
    assert rows["fedskel"]["personal_accuracy_all"] == pytest.approx(0.55)
    assert (rows["fedskel"]["clients_seen"], rows["fedskel"]["num_clients"]) == (4.5, 10)
    ends = np.linspace(0.45, 0.65, 10)  # of all clients; the last four or five have trained
    assert rows["fedskel"]["personal_p50"] == pytest.approx((np.median(ends[6:]) + np.median(ends[5:])) / 2)
    assert rows["adp"]["personal_accuracy"] == rows["adp"]["personal_accuracy_all"] == pytest.approx(0.5)
    assert rows["adp"]["clients_seen"] is None
    assert [name for name, row in rows.items() if row["front"]] == ["fedskel"]
    (test,) = significance_tables(list(series.values()))
    assert [(row["label"], row["difference"]) for row in test.rows] == [("fedskel", pytest.approx(0.2))]
    (target,) = target_tables(list(series.values()), 0.8)
    assert {row["label"]: row["reached"] for row in target.rows} == {"fedskel": 2, "fedavg": 0, "adp": 0}
    page = write_report([partly], tmp_path / "cmp.html")
    words = " ".join(read(page)[1].words)
    for expected in (
        "4.5 of 10",
        "55.0",
        "over the clients that have trained",
        "do not count trained clients",
    ):
        assert expected in words
    assert main.main(["compare", str(partly), "--tables", str(tmp_path / "tables")]) == 0
    assert "4.5 of 10" in capsys.readouterr().out
    clients = list(csv.DictReader((tmp_path / "tables" / "clients.csv").read_text("utf-8").splitlines()))
    told = [row["trained"] for row in clients if row["run"].startswith("fedskel/0")]
    assert told == ["False"] * 6 + ["True"] * 4


def test_one_mean_is_enough_where_all_have_trained(tmp_path):
    make_run(tmp_path / "a", trained=(10, 0.8))
    titles = [column.title for column in series_table(group(load_runs([tmp_path]))).columns]
    assert "clients that trained" in titles
    assert "personal, all clients" not in titles


def test_setup_bytes_are_marked_and_counted_on_request(tmp_path, capsys):
    """Two MB to each of ten devices turn who is on the front."""
    runs, setup = tmp_path / "runs", 2_000_000
    make_run(runs / "fedavg", up=20_000, down=20_000, personal=0.7, global_=None)
    make_run(
        runs / "fedmask",
        algorithm="fedmask",
        up=1_000,
        down=1_000,
        personal=0.6,
        global_=None,
        summary={"setup_bytes": setup},
    )
    sent = 2_000 * 20 * COHORT
    without, counted = (group(load_runs([runs], setup_bytes=counts)) for counts in (False, True))
    assert front_of(without, PERSONAL).labels == ("fedmask", "fedavg")
    assert front_of(counted, PERSONAL).labels == ("fedavg",)
    rows = {row["label"]: row for row in series_table(counted).rows}
    assert rows["fedmask"]["mb_total"] == pytest.approx((sent + 10 * setup) / 1e6)
    assert rows["fedmask"]["ratio"] == pytest.approx((sent + 10 * setup) / (20 * sent))
    assert rows["fedmask"]["mb_up"] == pytest.approx(0.001)
    assert cost_of_target(counted[1].runs[0], PERSONAL, 0.1, BYTES) == sent / 4 + 10 * setup

    marked, plain = (accuracy_figures(series)[0] for series in (without, counted))
    stars = [
        [line.get_xdata().tolist() for line in drawn.figure.axes[0].lines if line.get_marker() == "*"]
        for drawn in (marked, plain)
    ]
    assert stars == [[[sent + 10 * setup]], []]
    phrase = "setup bytes, which every device receives once, before the first round (fedmask 2.00 MB)"
    assert f"The lines exclude {phrase}" in marked.caption
    assert f"The lines include {phrase}" in plain.caption
    assert plain.figure.axes[-1].get_xlabel().endswith("setup included")
    assert main.main(["compare", str(runs), "--setup-bytes"]) == 0
    assert "received once by every device" in " ".join(capsys.readouterr().out.split())


def test_unequal_budgets_are_one_line_on_the_page_and_in_the_terminal(tmp_path, capsys):
    for name, epochs in (("fedavg", 1), ("fedmask", 5), ("adp", 5)):
        training = {"training": {"epochs": epochs, "batch_size": 10}}
        make_run(tmp_path / "runs" / name, algorithm=name, config=training)
    line = "Unequal budgets: local epochs 5 (adp, fedmask), 1 (fedavg)."
    page = tmp_path / "cmp.html"
    for command in (["report", "--out", str(page)], ["compare"]):
        assert main.main([command[0], str(tmp_path / "runs"), *command[1:]]) == 0
        assert line in capsys.readouterr().out
    assert line in " ".join(read(page)[1].words)
    two = group(load_runs([tmp_path / "runs" / name for name in ("fedmask", "adp")]))
    assert series_table(two).remarks == []
    for key, value, words in (
        ("cohort", 3, "clients per round 4 (adp), 3 (b)"),
        ("rounds", 15, "rounds 20 ("),
    ):
        make_run(
            tmp_path / key,
            algorithm="b",
            rounds=value if key == "rounds" else 20,
            config=training | {key: value},
        )
        (remark,) = series_table(group(load_runs([tmp_path / "runs" / "adp", tmp_path / key]))).remarks
        assert words in remark


def test_diverged_runs_are_named_wherever_their_numbers_are(tmp_path, capsys):
    for seed in range(3):
        make_run(tmp_path / "runs" / "a" / str(seed), seed=seed, diverged=seed > 0)
    make_run(tmp_path / "runs" / "b", algorithm="adp", diverged=False)
    assert main.main(["compare", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    assert "Diverged: fedavg (2 of 3 seeds)" in text
    page = write_report([tmp_path / "runs"], tmp_path / "cmp.html")
    assert "Diverged: fedavg (2 of 3 seeds)" in " ".join(read(page)[1].words)
    titles = [column.title for column in series_table(group(load_runs([tmp_path / "runs" / "b"]))).columns]
    assert "diverged" not in titles


def test_both_seeds_are_named_and_the_picture_says_whose_it_is(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs" / str(seed), data_seed=seed)
    text, page = read(write_report([tmp_path / "runs"], tmp_path / "cmp.html"))
    words = " ".join(page.words)
    assert "3 runs · 3 seeds each" in words
    assert "run seed 0 · data.seed 0 to 2" in words
    assert "data.seed 0: 10 clients" in words
    assert "The divisions with data.seed 1, 2 are not shown." in words
    assert "digits, shards:2, data.seed 0" in words
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r'<th scope="row">.*?</th>', text)]
    named = [[row for row in rows if re.search(rf"data\.seed {seed}\b(?!,)", row)] for seed in range(3)]
    assert [len(some) for some in named] == [1, 1, 1]


@pytest.mark.parametrize("key", ["data_seed", "seed"])
def test_runs_that_differ_in_seeds_and_what_follows_from_them_are_one_series(tmp_path, key):
    for seed in range(3):
        prints = {"devices" if key == "seed" else "data.name": f"{seed}" * 64}
        chosen = {"chosen_plan": f"vmap:{seed}", "chosen_plan_reason": f"{seed}", "chosen_storage": f"{seed}"}
        config = {"fingerprints": prints, **chosen}
        make_run(tmp_path / str(seed), config=config, **{key: seed})
    make_run(tmp_path / "other", config={"fingerprints": {"data.name": "f" * 64}, "cohort": 3})
    members = group(load_runs([tmp_path]))
    assert [(member.label, len(member.runs)) for member in members] == [
        ("fedavg, cohort=4", 3),
        ("fedavg, cohort=3", 1),
    ]
    assert len(group(load_runs([tmp_path / str(seed) for seed in range(3)]))) == 1


def test_labels_are_short_and_differ_however_long_settings_and_names_are(tmp_path):
    for end in ("a", "b"):
        layers = {"model": {"name": "mlp", "hidden": [*range(40), end]}}
        make_run(tmp_path / f"{end}{'x' * 200}", config=layers)
        make_run(tmp_path / f"{'y' * 100}{end}{'y' * 100}", config={**layers, "rounds": 7})
    labels = [member.label for member in group(load_runs([tmp_path]))]
    assert len(set(labels)) == 4
    assert max(map(len, labels)) <= 63


def test_a_budget_that_is_null_differs_from_a_number_and_an_absent_one_from_nothing(tmp_path):
    data = {"name": "digits", "partition": "shards:2", "clients": 10}
    for name, limit in (("fedavg", {"examples_per_client": 20}), ("adp", {"examples_per_client": None})):
        make_run(tmp_path / name, algorithm=name, config={"data": data | limit})
    make_run(tmp_path / "local", algorithm="local", config={"data": data})
    (remark,) = series_table(group(load_runs([tmp_path / "fedavg", tmp_path / "adp"]))).remarks
    assert remark == "Unequal budgets: examples per client 20 (fedavg), not set (adp)."
    assert series_table(group(load_runs([tmp_path / "fedavg", tmp_path / "local"]))).remarks == []


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """Series of two seeds; FedAvg's is the best and the cheapest, and diverged once."""
    root = tmp_path_factory.mktemp("wild")
    kinds = {"fedavg": (0.9, 1_000), "adp": (0.6, 2_000), "fedmask": (0.7, 3_000), "local": (0.5, 4_000)}
    for name, (accuracy, sent) in kinds.items():
        for seed in range(2):
            make_run(
                root / f"{name}-{seed}",
                algorithm=name,
                personal=accuracy + 0.01 * seed * (1 + (name == "adp")),
                global_=None,
                up=sent,
                down=sent,
                seed=seed,
                diverged=name == "fedavg" and seed == 1,
            )
    return group(load_runs([root]))


def test_what_diverged_is_neither_on_the_front_nor_best_nor_shown_as_accurate(wild):
    assert front_of(wild, PERSONAL).labels == ("adp", "fedmask")
    table = series_table(wild)
    rows = {row["label"]: row for row in table.rows}
    assert rows["fedavg"]["front"] is None
    best = {
        row["label"] for column in table.columns for row in table.rows if is_best(column, row, table.rows)
    }
    assert best == {"adp", "fedmask"}
    texts = {column.title: column.text(rows["fedavg"]) for column in table.columns}
    assert texts["diverged"] == "1 of 2 seeds"
    assert texts["personal accuracy"] == texts["clients' p10 / p50 / p90"] == "diverged"
    assert rows["adp"]["ratio"] == pytest.approx(2)  # over the baseline's sound run


def test_where_every_baseline_diverged_nothing_is_divided_by_it(tmp_path):
    make_run(tmp_path / "a", diverged=True)
    make_run(tmp_path / "b", algorithm="adp")
    assert [row["ratio"] for row in comparison_table(load_runs([tmp_path]))] == [None, None]


def test_what_diverged_neither_sets_nor_reaches_a_target_nor_is_tested(wild):
    assert common_target(wild, PERSONAL) == 0.57  # 95 % of adp's 0.61, not of fedmask's
    (table,) = target_tables(wild)
    rows = {row["label"]: row for row in table.rows}
    assert [column.text(rows["fedavg"]) for column in table.columns] == ["diverged"] * len(table.columns)
    assert (rows["fedavg"]["reached"], rows["fedavg"]["bytes"], rows["adp"]["reached"]) == (0, None, 2)
    (tested,) = significance_tables(wild)
    assert [row["label"] for row in tested.rows] == ["adp", "local"]
    assert "fedmask" in tested.title


def test_a_summary_alone_tells_that_a_run_diverged(tmp_path):
    make_run(tmp_path / "a", summary={"diverged": True})
    assert is_diverged(load_runs([tmp_path])[0])
