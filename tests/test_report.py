"""Reading run directories and drawing the report, on runs written by hand."""

import json
import re
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from handwritten import COHORT, make_run, read
from matplotlib.image import imread
from rich.console import Console

from fedjax_masks.analysis import column, comparison_table, load_run, plot_run, print_table, write_report
from fedjax_masks.analysis import report as writer
from fedjax_masks.analysis.records import client_accuracy, layer_densities, per_client_round
from fedjax_masks.analysis.style import group


@pytest.fixture(autouse=True)
def coarse_images(monkeypatch):
    """Images are coarse but for those of the fixture ``report``, which is made before this one."""
    monkeypatch.setattr(writer, "_PNG_DPI", 20)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs that every test reads and none changes."""
    tmp_path = tmp_path_factory.mktemp("runs")
    return [
        make_run(tmp_path / "a", algorithm="fedavg", personal=0.8123),
        make_run(
            tmp_path / "b",
            algorithm="fedmask",
            personal=0.8768,
            global_=None,
            up=15_000,
            down=45_000,
            extra={"density/conv1": 0.4, "density/fc1": 0.3, "personal_accuracy_writeback": 0.6543},
            summary={"setup_bytes": 640_000},
        ),
        make_run(tmp_path / "c", algorithm="splitfed", personal=None, global_=0.7321, up=2_000_000),
    ]


@pytest.fixture(scope="module")
def report(three, tmp_path_factory):
    return write_report(three, tmp_path_factory.mktemp("pages") / "new" / "report.html")


def test_columns_have_nan_for_null_and_reach_into_extra(three):
    run = load_run(three[1])
    assert np.isnan(column(run, "global_accuracy")).all()
    np.testing.assert_allclose(column(run, "density/conv1"), [0.7, 0.6, 0.5, 0.4])
    assert np.isnan(column(run, "no such key")).all()
    assert list(layer_densities(run)) == ["conv1", "fc1"]
    assert (np.diff(client_accuracy(run)) >= 0).all()


def test_bytes_per_client_are_over_all_rounds_not_the_evaluated_ones(tmp_path):
    run = load_run(make_run(tmp_path / "a", rounds=10))
    run.records[-1].update(bytes_up=7, bytes_up_total=10 * COHORT * 1234)
    assert per_client_round(run, "bytes_up_total") == 1234


def test_table_rows(three):
    fedavg, fedmask, splitfed = comparison_table([load_run(path) for path in three])
    assert fedavg["algorithm"] == "fedavg"
    assert (fedavg["mb_up"], fedavg["mb_down"], fedavg["ratio"]) == (0.5, 1.0, 1.0)
    assert fedavg["mb_total"] == pytest.approx(1.5 * 20 * COHORT)
    assert fedavg["mb_setup"] is None
    assert fedmask["ratio"] == pytest.approx(0.06 / 1.5)
    assert fedmask["mb_setup"] == 0.64
    assert fedmask["global_accuracy"] is None
    assert fedmask["personal_writeback"] == pytest.approx(0.6543)
    assert splitfed["personal_accuracy"] is None
    assert splitfed["global_accuracy"] == pytest.approx(0.7321)


def test_ratio_only_where_fedavg_ran_on_the_same_data(tmp_path):
    paths = [
        make_run(tmp_path / "a", model="cnn"),
        make_run(tmp_path / "b", model="mlp", up=5_000_000, down=5_000_000),
        make_run(tmp_path / "c", algorithm="fedskel", model="mlp", up=1_000_000),
        make_run(tmp_path / "d", algorithm="fedskel", data="mnist"),
    ]
    rows = comparison_table([load_run(path) for path in paths])
    assert rows[2]["ratio"] == pytest.approx(0.2)
    assert rows[3]["ratio"] is None
    assert comparison_table([load_run(paths[2])])[0]["ratio"] is None


def test_page_refers_to_nothing_outside_itself(report):
    text, page = read(report)
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]", text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    targets = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_page_has_every_runs_numbers(report):
    text, page = read(report)
    words = " ".join(page.words)
    for expected in (
        *("81.2 %", "71 / 81 / 91 %", "87.7 %", "78 / 88 / 98 %", "73.2 %", "75.0 %", "65.4 %"),
        *("0.500", "1.00", "0.0150", "0.0450", "2.00", "120", "4.80", "240"),
        *("0.0400", "0.640", "2.50", "shards:2", "0.10.2", "training.batch_size"),
    ):
        assert expected in words, expected
    assert text.count("<svg") == 6
    assert words.count("fedmask") > 3


def test_images_lie_beside_the_page(report):
    images = sorted((report.parent / "report_figures").iterdir())
    names = ["accuracy-bytes", "accuracy-rounds", "client-spread", "mask-density", "partition", "traffic"]
    assert [image.stem for image in images] == names
    for image in images:
        pixels = imread(image)[..., :3]
        assert pixels.shape[1] >= 900
        assert 0.01 < (pixels.min(-1) < 0.9).mean() < 0.5
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.html", "report_figures"]


def test_one_run(three, tmp_path):
    text, page = read(write_report(three[2:], tmp_path / "report.html"))
    words = " ".join(page.words)
    assert "splitfed on digits" in words
    assert "personal accuracy" not in words.split("Accuracy against rounds")[0]
    assert text.count("<svg") == 4
    assert 'class="best"' not in text


def test_a_colour_belongs_to_an_algorithm_and_a_dash_to_its_settings(tmp_path):
    paths = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", algorithm="fedmask", options={"score_lr": 0.1}),
        make_run(tmp_path / "d", algorithm="fedmask", options={"score_lr": 0.2}),
        make_run(tmp_path / "e", algorithm="adp"),
    ]
    series = group([load_run(path) for path in paths])
    assert [len(member.runs) for member in series] == [2, 1, 1, 1]
    labels = [member.label for member in series]
    assert labels == ["fedavg", "fedmask, score_lr=0.1", "fedmask, score_lr=0.2", "adp"]
    assert series[1].color == series[2].color
    assert series[1].dash != series[2].dash
    assert len({member.color for member in series}) == 3
    alone = group([load_run(paths[0]), load_run(paths[4])])
    assert alone[0].color == series[0].color


def test_a_run_that_sends_nothing_and_one_that_has_not_begun(tmp_path):
    silent = make_run(tmp_path / "silent", algorithm="local", up=0, down=0)
    young = make_run(tmp_path / "young", algorithm="adp", rounds=3)
    (young / "summary.json").unlink()
    (young / "metrics.jsonl").unlink()
    _, page = read(write_report([silent, young], tmp_path / "report.html"))
    assert "0 of 3" in " ".join(page.words)
    assert load_run(young).records == []
    _, page = read(write_report([young], tmp_path / "young.html"))
    assert [name for name in page.ids if name.startswith("accuracy")] == []


def test_a_cut_off_line_is_left_out_and_a_repeated_round_replaced(tmp_path):
    path = make_run(tmp_path / "a")
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    again = json.dumps(json.loads(lines[2]) | {"train_loss": 0.125})
    metrics.write_text("\n".join([*lines[:3], again, lines[3][:40]]))
    (path / "summary.json").unlink()
    run = load_run(path)
    assert column(run, "round").tolist() == [5, 10, 15]
    assert column(run, "train_loss")[-1] == 0.125
    assert comparison_table([run])[0]["rounds"] == 15


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "must be readable as JSON"),
        (lambda path: (path / "summary.json").write_text("[1]"), "must hold a JSON object, not a list"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), "must be readable as JSON"),
        (lambda path: (path / "metrics.jsonl").write_text('{"rou\n{"round": 5}\n'), "line 1"),
        (lambda path: (path / "metrics.jsonl").write_text('3\n{"round": 5}\n'), "line 1"),
        (lambda path: path.rename(path.with_name("gone")), "no such directory"),
    ],
)
def test_broken_runs_are_refused_in_one_line(tmp_path, damage, message):
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    damage(bad)
    with pytest.raises(ValueError, match=message) as caught:
        write_report([good, bad], tmp_path / "out" / "report.html")
    assert "\n" not in str(caught.value)
    assert str(bad) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="name at least one"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="html"):
        write_report([make_run(tmp_path / "a")], tmp_path)


def test_what_users_write_is_escaped(tmp_path):
    nasty = "<b>&\"'$x^{$_"
    paths = [
        make_run(
            tmp_path / f"_<i>{seed}$\\frac", algorithm=nasty, data=nasty, options={"<u>": "<s>", "lr": seed}
        )
        for seed in range(2)
    ]
    text, page = read(write_report(paths, tmp_path / "report.html"))
    assert not {"b", "i", "u", "s"} & set(page.tags)
    assert "<b>" not in text
    assert nasty in "".join(page.words)


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / parent / "run", personal=None) for parent in ("x", "y")]
    _, page = read(write_report([*paths, paths[0]], tmp_path / "report.html"))
    words = " ".join(page.words)
    assert "2 runs" in words
    assert "x/run" in words
    assert "y/run" in words


def test_terminal_table_shows_all_runs_on_a_narrow_terminal(three):
    text = StringIO()
    print_table([load_run(path) for path in three], Console(file=text, width=64))
    printed = text.getvalue()
    assert max(map(len, printed.splitlines())) <= 64
    for expected in ("fedavg", "fedmask", "splitfed", "81.2 %", "87.7 %", "0.0150", "0.0400"):
        assert expected in printed


def test_plot_of_runs_on_disk_and_of_one_in_memory(three):
    runs = [load_run(path) for path in three]
    rounds, traffic = plot_run(*runs).axes
    lines = {tuple(line.get_ydata()): line for line in rounds.lines}
    personal = lines[tuple(100 * column(runs[1], "personal_accuracy_mean"))]
    assert personal.get_xdata().tolist() == [5, 10, 15, 20]
    assert traffic.get_xscale() == "log"
    drawn = [line.get_xdata()[-1] for line in traffic.lines if len(line.get_xdata())]
    with_setup = 4.8e6 + 10 * 640_000  # FedMask's, for ten clients
    assert sorted(set(drawn)) == pytest.approx([4.8e6, with_setup, 120e6, 240e6])
    figure = plot_run(SimpleNamespace(records=runs[0].records))
    assert figure._repr_png_().startswith(b"\x89PNG")
