import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from fedjax_masks.algorithms.registry import REGISTRY, Entry
from fedjax_masks.cli import launcher, main
from fedjax_masks.cli.listing import keys_of
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Count, coerce, describe
from fedjax_masks.data import DATASETS, label_histogram, load_task
from fedjax_masks.experiment import config, experiment
from fedjax_masks.models import MODELS

SMALL = ["--model", "mlp", "--clients", "10", "--cohort", "3", "--rounds", "2"]


def fails(capsys, *argv):
    """Runs a command that must be refused; returns the one line it says."""
    assert main.main(list(argv)) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "data.npz"
        good = {"x": np.zeros((40, 6), np.float32), "y": np.arange(40) % 3}
        np.savez(path, **(good | arrays), allow_pickle=True)
        return ["--dataset", f"npz:{path}"]

    return write


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--algorithm", "fedmsk"], ["fedmsk", "fedmask"]),
        ([], ["algorithm.name", "fedavg"]),
        (["--algorithm", "fedavg", "--model", "lenett"], ["lenett", "'lenet'"]),
        (["--algorithm", "fedavg", "--set", "algorithm.lrr=1"], ["algorithm.lrr", "algorithm.lr"]),
        (["--algorithm", "fedavg", "--set", "rounds"], ["--set rounds", "KEY=VALUE"]),
        (["--algorithm", "fedavg", "--cohort", "11", "--clients", "10"], ["cohort=11", "1 to 10"]),
        (["--algorithm", "fedavg", "--rounds", "-1"], ["rounds=-1", "at least 1"]),
        (["--algorithm", "fedavg", "--rounds", "ten"], ["rounds=ten", "an integer"]),
        (["--algorithm", "fedavg", "--set", "algorithm.lr=nan"], ["algorithm.lr=nan", "finite"]),
        (["--algorithm", "fedavg", "--set", "algorithm.lr=inf"], ["algorithm.lr=inf", "finite"]),
        (["--algorithm", "fedavg", "--partition", "shard:2"], ["shard:2", "shards"]),
        (["--algorithm", "fedavg", "--partition", "shards:2", "--clients", "1000"], ["1000", "719"]),
        (["--algorithm", "fedavg", "--plan", "scan"], ["--plan: unknown flag", "--set plan=VALUE"]),
        (["--algoritm", "fedavg"], ["--algoritm", "did you mean --algorithm?"]),
        (["--algorithm", "fedavg", "--eval-evry=3"], ["--eval-evry", "--eval-every", "run --help"]),
        (["--algorithm", "fedavg", "fedmask"], ["fedmask", "--help"]),
        (["--algorithm", "fedavg", "--set", "lr=1"], ["lr: unknown", "is algorithm.lr", "list keys"]),
        (["--algorithm", "fedmask", "--set", "lr=1"], ["lr: unknown", "is algorithm.score_lr;"]),
        (["--algorithm", "fedavg", "--set", "learning_rate=1"], ["is algorithm.lr;"]),
        (["--algorithm", "fedavg", "--set", "algorithm.mu=1"], ["algorithm.mu is a key of fedprox;"]),
        (["--algorithm", "fedavg", "--set", "zebra=1"], ["zebra: unknown key; all: "]),
        (["--algorithm", "fedavg", "--learning-rate", "1"], ["did you mean --lr?"]),
        (["--algorithm", "fedavg", "--num_clients=9"], ["did you mean --clients?"]),
        (["--algorithm", "fedavg", "--mu", "1"], ["a key of fedprox: --set algorithm.mu=VALUE"]),
        (["--algorithm", "fedavg", "--zebra", "1"], ["--zebra: unknown flag; keys without a flag"]),
        (["--algorithm", "fedmask", "--lr", "1"], ["lr=1", "--set algorithm.score_lr=RATE (default: 100)"]),
        (["--algorithm", "fedavg", "--lr", "0"], ["algorithm.lr=0", "above 0"]),
        (["--lr", "1"], ["algorithm.name: must be given, as one of adp"]),
        (["fedavg"], ["fedavg: unknown argument; did you mean --algorithm fedavg?"]),
        (["Fashion-MNIST"], ["did you mean --dataset fashion_mnist?"]),
        (["--algorithm", "Lg-FedAvg"], ["did you mean 'lgfedavg'?"]),
        (["--algorithm", "FedAdam"], ["did you mean 'fedavg with server_optimizer.name=adam'?"]),
        (["--algorithm", "fedavg", "--partition", "dirichlet(0.1)"], ["did you mean 'dirichlet:0.1'?"]),
        (["--algorithm", "fedavg", "--partition", "Shards_2"], ["did you mean 'shards:2'?"]),
        (["--algorithm", "fedavg", "--dataset", "FashionMNIST"], ["did you mean 'fashion_mnist'?"]),
        (["--algorithm", "fedavg", "--batch-size", "2147483648"], ["batch_size=2147483648", "2147483647"]),
        (["--algorithm", "fedavg", *SMALL, "--num-processes", "2"], ["--coordinator"]),
        (["--algorithm", "fedavg", *SMALL, "--dataset", "my.npz"], ["'my.npz'", "'npz:my.npz'"]),
        (["--algorithm", "fedavg", *SMALL, "--set", "plan=fast"], ["plan='fast'", "vmap"]),
        (["--algorithm", "fedavg", "--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--algorithm", "fedavg", "--seed", "1\n2\u2028"], ["seed=1\\n2\\u2028: ", "an integer"]),
        (["--algorithm", "fedavg", *SMALL, "--set", "pretraining.source=orbax:/"], ["orbax:/"]),
        (
            ["--algorithm", "fedavg", "--set", "algorithm.optimizer=adam", "--set", "algorithm.momentum=0.9"],
            ["momentum"],
        ),
        (["--algorithm", "fedmask", *SMALL, "--set", "algorithm.prune_ratio=2"], ["prune_ratio=2"]),
        (["--algorithm", "adp", *SMALL], ["'mlp'", "must have a convolution"]),
        (["--algorithm", "adp", "--set", "algorithm.ratio=0"], ["algorithm.ratio=0", "above 0"]),
        (["--algorithm", "adp", "--set", "algorithm.ratio=0.01"], ["ratio=0.01", "a channel of conv1"]),
        (["--algorithm", "lotteryfl", "--set", "algorithm.held_out=4294967296"], ["held_out=", "2147483647"]),
        (["--algorithm", "adp", "--set", "algorithm.federation=sgd"], ["federation=sgd", "fednova"]),
        (
            ["--algorithm", "fedavg", "--dataset", "digits", "--data-dir", "x", "--dataset", "npz:no.npz"],
            ["no.npz"],
        ),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(tmp_path, capsys, argv, words):
    out = tmp_path / "out"
    message = fails(capsys, "run", *argv, "--out", str(out))
    assert all(word in message for word in words), message
    assert not out.exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.array([{}] * 40, object)},
        {"x": np.zeros((39, 6), np.float32)},
        {"y": np.arange(40) - 1},
        {"y": np.linspace(0, 1, 40)},
    ],
    ids=["objects", "lengths", "negative", "fractions"],
)
def test_arrays_that_cannot_serve_are_refused(tmp_path, capsys, npz, arrays):
    out = tmp_path / "out"
    message = fails(capsys, "run", "--algorithm", "fedavg", *npz(**arrays), *SMALL, "--out", str(out))
    assert "data.npz" in message
    assert not out.exists()


@pytest.mark.parametrize("name", ["mnist", "no_such_data_set"])
def test_a_folder_without_the_data_set_is_refused(tmp_path, capsys, name):
    (tmp_path / "data").mkdir()
    where = ["--dataset", name, "--data-dir", str(tmp_path / "data")]
    message = fails(capsys, "run", "--algorithm", "fedavg", *where, *SMALL, "--out", str(tmp_path / "out"))
    assert name in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv", [[], ["fly"], ["run"], ["report"], ["list", "planets"], ["bench", "--rounds", "x"]]
)
def test_arguments_that_make_no_command_are_refused(capsys, argv):
    fails(capsys, *argv)


def test_out_must_be_free(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    message = fails(capsys, "run", "--algorithm", "fedavg", "--out", str(tmp_path))
    assert "--resume" in message
    assert "out=" in fails(capsys, "run", "--algorithm", "fedavg", "--out", str(tmp_path / "config.json"))
    message = fails(capsys, "demo", "--out", str(tmp_path))
    assert "empty directory" in message
    assert "--resume" not in message
    assert "must hold a run to resume" in fails(capsys, "run", "--resume", "--out", str(tmp_path / "new"))
    assert (tmp_path / "config.json").read_text() == "{}"


def test_report_of_no_run_is_refused(tmp_path, capsys):
    message = fails(capsys, "report", str(tmp_path / "none"), "--out", str(tmp_path / "report.html"))
    assert "none" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "pipe"])
@pytest.mark.parametrize(
    "command",
    [
        ("report", ".", "--out", "{}.html"),
        ("pretrain", "--out", "{}.npz"),
        ("partition", "--clients", "5", "--out", "{}.png"),
    ],
    ids=lambda argv: argv[0],
)
def test_only_ordinary_files_are_written_over(tmp_path, capsys, kind, command):
    path = tmp_path / command[-1].format("there")
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert "must be a new name or an ordinary file" in fails(capsys, *command[:-1], str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert not path.is_file()


def test_set_beats_flags_and_flags_the_file(tmp_path, monkeypatch):
    seen = []

    def note(config, out, **options):
        seen.append((config, options))

    monkeypatch.setattr(experiment, "run_experiment", note)
    path = tmp_path / "run.toml"
    path.write_text('rounds = 1\ncohort = 1\nseed = 1\n[algorithm]\nname = "fedmask"\nscore_lr = 0.5\n')
    flags = ["--rounds", "2", "--cohort", "2", "--set", "cohort=3", "--set", "algorithm.score_lr=0.25"]
    assert main.main(["run", "--config", str(path), *flags, "--out", str(tmp_path / "o"), "--quiet"]) == 0
    ((config, options),) = seen
    assert (config.seed, config.rounds, config.cohort) == (1, 2, 3)
    assert config.algorithm.options["score_lr"] == 0.25
    assert options == {"resume": False, "quiet": True}


@pytest.mark.parametrize(
    ("kind", "names"), [("algorithms", REGISTRY), ("models", MODELS), ("datasets", DATASETS)]
)
def test_list_says_what_there_is(capsys, kind, names):
    assert main.main(["list", kind, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed[kind]) == list(names)
    assert all(listed[kind].values())


def test_every_key_is_listed_with_its_meaning_and_its_default(capsys):
    assert main.main(["list", "keys", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    for algorithm in REGISTRY:
        for key, option in config.keys(algorithm, "vgg11").items():
            if key not in ("algorithm.name", "model.name"):
                assert "; default" in listed[key]
                meaning, _, _ = listed[key].partition(describe(option.annotation))
                assert meaning or key.startswith("model."), key
    assert "5 (fedmask)" in listed["training.epochs"]
    assert f"{REGISTRY['fedsgd'].lr:g} (fedsgd, mpfl)" in listed["algorithm.lr"]
    assert "(most)" in listed["algorithm.lr"]


def test_lists_keep_names_and_texts_apart(capsys):
    assert main.main(["list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert all("  " in line.strip() for line in lines)


def test_partitions_are_listed_as_they_are_written(capsys):
    assert main.main(["list", "partitions"]) == 0
    assert "lotteryfl:N:BALANCE" in capsys.readouterr().out


def test_help_ends_well(capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["run", "--help"])
    assert end.value.code == 0
    assert "--partition SPEC" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main.main(["--version"])
    assert end.value.code == 0
    assert "0." in capsys.readouterr().out


def test_a_partition_is_shown_without_training(tmp_path, capsys):
    asked = ["partition", "--partition", "dirichlet:0.5", "--clients", "25", "--seed", "3"]
    assert main.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    task = load_task("digits", partition="dirichlet:0.5", clients=25, seed=3)
    assert (found["seed"], found["train_sizes"]) == (3, task.train.sizes.tolist())
    assert found["test_sizes"] == task.test.sizes.tolist()
    assert found["train_classes"] == label_histogram(task).tolist()
    assert main.main([*asked, "--out", str(tmp_path / "partition.png")]) == 0
    text = capsys.readouterr().out
    assert "dirichlet:0.5, seed 3: 25 clients" in text
    assert "The first 20 of 25 clients" in text
    assert str(max(task.train.sizes)) in text
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
    error = fails(capsys, *asked, "--out", str(tmp_path / "partition.gif"))
    assert "must end in .png, .pdf or .svg" in error
    assert "no draw of 500" in fails(capsys, *asked[:1], "--partition", "dirichlet:1e-5", "--out", "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["partition.png"]


def test_a_diverged_run_ends_well_and_its_table_says_so(tmp_path, capsys):
    wild = ["--set", "model.hidden=8", "--set", "algorithm.lr=1e30", "--out", str(tmp_path / "run")]
    assert main.main(["run", "--algorithm", "fedavg", *SMALL, *wild]) == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.strip().startswith("diverged")]
    assert row.split() == ["diverged", "yes"]
    accuracies = [line.split()[-1] for line in text.splitlines() if "accuracy" in line.split("  ")[0]]
    assert accuracies
    assert set(accuracies) <= {"diverged", "n/a"}
    assert "Diverged: fedavg; " in text
    assert "0 of 10" in text


@pytest.mark.slow
def test_a_run_from_the_shell_resumes_and_is_reported(tmp_path):
    def shell(*argv):
        command = [sys.executable, "-m", "fedjax_masks.cli", *argv]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)

    out, report = str(tmp_path / "run"), str(tmp_path / "report.html")
    first = shell("run", "--algorithm", "fedavg", *SMALL, "--set", "model.hidden=8", "--out", out)
    assert first.returncode == 0, first.stderr
    assert "; 3 of 10 clients a round" in first.stderr
    assert "fedavg" in first.stdout
    again = shell("run", "--resume", "--out", out, "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    changed = shell("run", "--algorithm", "local", "--resume", "--out", out)
    assert changed.returncode == 2
    assert changed.stderr.startswith("error: ")
    assert shell("report", out, "--out", report).returncode == 0
    assert "fedavg" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_demo_compares_three_algorithms(tmp_path, capsys):
    assert main.main(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("fedavg", "local", "fedmask"))
    assert (tmp_path / "report.html").stat().st_size > 10_000
    summaries = {
        name: json.loads((tmp_path / name / "summary.json").read_text())
        for name in ("fedavg", "local", "fedmask")
    }
    fedavg, local, fedmask = (summaries[name] for name in ("fedavg", "local", "fedmask"))
    assert min(fedavg["last_global_accuracy"], local["last_personal_accuracy_mean"]) > 0.85
    assert fedmask["last_personal_accuracy_mean"] > 0.75  # chance is 0.1
    # One bit per weight is 1/32; every client's first upload carries its structure as well.
    assert fedavg["bytes_up_total"] / 32 < fedmask["bytes_up_total"] < fedavg["bytes_up_total"] / 25
    assert (local["bytes_up_total"], local["last_global_accuracy"]) == (0, None)


def test_huge_pages_are_asked_for_once_and_only_where_that_helps(tmp_path):
    modes = tmp_path / "enabled"
    assert not launcher.offers_huge_pages(modes)
    for text, helps in (("always [madvise] never\n", True), ("[always] madvise never\n", False)):
        modes.write_text(text)
        assert launcher.offers_huge_pages(modes) == helps


def test_the_launcher_starts_the_command_line_with_its_arguments(tmp_path):
    """In a process of its own, which replaces itself where huge pages are to be had."""
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_masks.cli", "run", "--out", "a b", "--algorithm", "c d"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | tunables,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: algorithm.name='c d': ")
    assert not done.stdout


def test_the_launcher_replaces_its_process_by_one_that_asks(monkeypatch):
    monkeypatch.setattr(launcher, "offers_huge_pages", lambda modes: True)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fedjax_masks.cli", "list", "models"])
    asked = []

    class Replaced(Exception):
        pass

    def execv(path, argv):
        asked.append((path, argv, os.environ["GLIBC_TUNABLES"]))
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced):
        launcher.main()
    command = [sys.executable, "-m", "fedjax_masks.cli", "list", "models"]
    assert asked == [(sys.executable, command, "glibc.malloc.check=0:glibc.malloc.hugetlb=1")]
    monkeypatch.setattr(sys, "argv", ["fedjax-masks", "list", "models"])
    assert launcher.main() == 0  # asked for already


def test_a_rate_is_a_flag(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(experiment, "run_experiment", lambda config, out, **options: seen.append(config))
    for flags in (["--lr", "0.5"], ["--lr", "0.5", "--set", "algorithm.lr=0.25"]):
        argv = ["run", "--algorithm", "fedavg", *flags, "--out", str(tmp_path / "o"), "--quiet"]
        assert main.main(argv) == 0
    assert [config.algorithm.options["lr"] for config in seen] == [0.5, 0.25]


def test_keys_of_one_algorithm_are_listed_alone(capsys):
    assert main.main(["list", "keys", "--algorithm", "fedprox", "--model", "mlp", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    options = config.keys("fedprox", "mlp")
    named = {key for key in options if key.startswith(("algorithm.", "model.")) and not key.endswith(".name")}
    assert set(listed) == named
    for key, text in listed.items():
        assert describe(options[key].annotation) in text
    assert listed["algorithm.mu"].endswith("; default 0.01")
    assert listed["model.hidden"].endswith("; default 200,200")
    assert main.main(["list", "keys", "--model", "femnist-cnn"]) == 0
    assert capsys.readouterr().out == "keys: none\n"
    assert "fedmask" in fails(capsys, "list", "keys", "--algorithm", "fedmsk")
    assert "list keys" in fails(capsys, "list", "models", "--algorithm", "fedavg")


def test_options_of_an_own_algorithm_need_no_annotations(monkeypatch):
    def own(model, trainer, *, needed: int, rate=0.5, layers=("a",), flag=True, **training):
        raise NotImplementedError

    monkeypatch.setitem(REGISTRY, "own", Entry(own, "sgd", 0.1, epochs=2))
    with pytest.raises(UserError, match=r"algorithm.needed: must be given, as an integer"):
        config.make_config({"algorithm.name": "own"})
    values = {"algorithm.needed": "3", "algorithm.rate": "0.25", "algorithm.layers": '["b", "c"]'}
    made = config.make_config({"algorithm.name": "own", "algorithm.flag": "false", **values})
    given = {key: made.algorithm.options[key] for key in ("needed", "rate", "layers", "flag")}
    assert given == {"needed": 3, "rate": 0.25, "layers": ("b", "c"), "flag": False}
    assert made.training.epochs == 2
    assert "default none, must be given" in keys_of("own")["algorithm.needed"]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["conv1","dense1"]', ("conv1", "dense1")),
        ("['conv1', \"dense1\"]", ("conv1", "dense1")),
        ('"conv1", "dense1"', ("conv1", "dense1")),
        ("[conv1, dense1,]", ("conv1", "dense1")),
        ('["a, b"]', ("a, b",)),
        ("[]", ()),
    ],
)
def test_lists_are_written_bare_or_as_in_toml_and_json(text, items):
    assert coerce("key", text, Sequence[str]) == items


@pytest.mark.parametrize("text", ["", "[1", "[[1, 2]]", "1,,2", "[" * 5000, '"1'])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(UserError, match="a list of integers at least 1"):
        coerce("key", text, Sequence[Count])
    assert coerce("key", " [1, 2] ", Sequence[Count]) == coerce("key", "1,2", Sequence[Count]) == (1, 2)


def test_text_that_a_stream_cannot_hold_is_written_plainly(monkeypatch):
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    assert main.main(["run", "--algorithm", "é", "--out", "x"]) == 2
    print("41.6 ± 0.3 MB/client·round, é", end="")
    for stream in (out, error):
        stream.flush()
    assert out.buffer.getvalue() == b"41.6 +- 0.3 MB/client*round, \\xe9"
    assert error.buffer.getvalue().startswith(b"error: algorithm.name='\\xe9': must be one of adp")
