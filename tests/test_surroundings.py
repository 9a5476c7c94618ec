"""What surrounds a run: matplotlib, its backend, and the platform that jax runs on."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from fedjax_masks.benchmarks import measure
from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import lock, platforms
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment

PACKAGE = Path(main.__file__).parents[1]
PLOTTING = PACKAGE / "analysis" / "plotting.py"
TINY = {
    "algorithm.name": "fedavg",
    "model.name": "mlp",
    "model.hidden": (4,),
    "data.clients": 5,
    "cohort": 2,
    "rounds": 1,
}


def python(code, **variables):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)


@pytest.mark.parametrize("name", ["nonsense", "module://nowhere.backend"])
def test_a_backend_that_cannot_be_imported_does_not_keep_figures_from_being_drawn(tmp_path, name):
    code = (
        f"import os, runpy; drawn = runpy.run_path({str(PLOTTING)!r})['Figure']();"
        f"drawn.subplots().plot([1, 2]); drawn.savefig({str(tmp_path / 'a.png')!r});"
        "print(os.environ['MPLBACKEND'])"
    )
    done = python(code, MPLBACKEND=name)
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_backend_that_can_be_had_stays_chosen_for_pyplot():
    code = (
        f"import runpy; runpy.run_path({str(PLOTTING)!r}); import matplotlib; print(matplotlib.get_backend())"
    )
    assert python(code, MPLBACKEND="svg").stdout == "svg\n"


def test_matplotlib_is_imported_in_one_place():
    importing = re.compile(r"^\s*(?:import|from) (?:matplotlib|pylab)\b", re.MULTILINE)
    folders = (PACKAGE, PACKAGE.parent / "experiments")
    found = [
        path.name for folder in folders for path in folder.rglob("*.py") if importing.search(path.read_text())
    ]
    assert found == [PLOTTING.name]


def test_a_run_ends_well_without_matplotlib(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setitem(sys.modules, "fedjax_masks.analysis.plotting", None)
    with caplog.at_level(logging.WARNING, "fedjax_masks"):
        run_experiment(make_config(TINY), tmp_path / "run", quiet=True)
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["round"] == 1
        (line,) = [record.getMessage() for record in caplog.records]
        assert "accuracy.png: not drawn: ModuleNotFoundError" in line
        assert "\n" not in line
        assert main.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "The figures could not be drawn: ModuleNotFoundError" in (tmp_path / "page.html").read_text()
    assert "fedavg" in capsys.readouterr().out


def test_a_figure_that_cannot_be_written_leaves_no_half_of_it(tmp_path, caplog):
    from fedjax_masks.analysis.canvas import save_figure

    path = tmp_path / "a.png"

    def savefig(path, dpi):
        path.write_bytes(b"half")
        raise OSError("no\nspace")

    save_figure(lambda: SimpleNamespace(savefig=savefig), path)
    assert caplog.messages == [f"{path}: not drawn: OSError: no space; 'fedjax-masks report' draws it later"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("switch", "words"),
    [
        (lambda: jax.disable_jit(), "JAX_DISABLE_JIT=True: must be False"),
        (lambda: jax.numpy_rank_promotion("raise"), "JAX_NUMPY_RANK_PROMOTION=raise: must be allow or warn"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION=strict: must be standard"),
        (lambda: jax.transfer_guard("disallow"), "JAX_TRANSFER_GUARD"),
    ],
)
def test_switches_under_which_nothing_runs_are_refused(tmp_path, switch, words):
    with switch(), pytest.raises(UserError, match=words):
        run_experiment(make_config(TINY), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    platforms.check()


def fake_jax(asked, start):
    return SimpleNamespace(
        config=SimpleNamespace(jax_platforms=asked), default_backend=start, __version__="1.2.3"
    )


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize\nbackend 'cuda'"), AssertionError()])
@pytest.mark.parametrize("command", ["run", "sweep", "pretrain", "bench", "demo"])
def test_a_platform_that_does_not_start_is_refused(tmp_path, capsys, monkeypatch, error, command):
    def start():
        raise error

    monkeypatch.setattr(platforms, "jax", fake_jax("cuda", start))
    (tmp_path / "sweep.toml").write_text('rounds = 1\n[algorithm]\nname = "fedavg"\n')
    out = tmp_path / "out"
    argv = {
        "run": ["--algorithm", "fedavg", "--out", str(out)],
        "sweep": [str(tmp_path / "sweep.toml"), "--out", str(out)],
        "demo": ["--out", str(out)],
    }
    assert main.main([command, *argv.get(command, [])]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert stderr.startswith("error: JAX_PLATFORMS=cuda: must name platforms that start on this machine")
    assert ("jax says RuntimeError: Unable to" in stderr) == isinstance(error, RuntimeError)
    assert not out.exists()


@pytest.mark.parametrize(
    ("asked", "platform", "there", "warned"),
    [
        (None, "cpu", True, True),
        ("", "cpu", True, True),
        ("cpu", "cpu", True, False),
        (None, "cpu", False, False),
        (None, "gpu", True, False),
    ],
)
def test_an_idle_gpu_is_mentioned_once(tmp_path, monkeypatch, caplog, asked, platform, there, warned):
    device = tmp_path / "nvidia0"
    if there:
        device.touch()
    monkeypatch.setattr(platforms, "_NVIDIA", (tmp_path / "nothing", device))
    monkeypatch.setattr(platforms, "jax", fake_jax(asked, lambda: platform))
    platforms._warn_of_idle_gpu.cache_clear()
    for _ in range(3):
        platforms.check()
    assert len(caplog.messages) == warned
    assert all("fedjax_masks[cuda]" in message and "1.2.3" in message for message in caplog.messages)


def test_a_run_needs_nothing_that_windows_lacks(tmp_path, monkeypatch):
    for module in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("sysconf", "pread", "posix_fadvise", "O_DIRECTORY"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(measure, "_status_mb", lambda field: None)
    unlink = Path.unlink

    def removed(path, missing_ok=False):
        if path.name == lock.NAME:
            raise PermissionError("it is open")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", removed)
    assert math.isnan(measure.peak_rss_mb())
    run = run_experiment(make_config(TINY), tmp_path / "run", quiet=True)
    assert run.summary["round"] == 1
