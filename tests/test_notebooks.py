"""Notebooks run from top to bottom, and shell commands in their cells work as on a terminal."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def execute(notebook, folder):
    nbclient = pytest.importorskip("nbclient")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()


def install_cell(path):
    cells = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"]]
    (source,) = ["".join(source) for source in cells if any("%pip" in line for line in source)]
    return source


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    nbformat = pytest.importorskip("nbformat")
    execute(nbformat.read(path, as_version=4), path.parent)


@pytest.mark.parametrize(
    ("gpu", "there", "installed"),
    [(True, False, ["fedjax_masks[cuda]"]), (False, False, ["fedjax_masks"]), (True, True, [])],
)
def test_notebooks_install_the_plugin_of_a_gpu(monkeypatch, gpu, there, installed):
    (cell,) = {install_cell(path) for path in NOTEBOOKS}
    sources = []
    monkeypatch.setattr(Path, "exists", lambda path: gpu and str(path) == "/dev/nvidia0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
    exec(cell.replace('%pip install --quiet "{source}"', "sources.append(source)"), {"sources": sources})
    assert sources == installed


# Variables that a kernel exports to shell commands of its cells. Without matplotlib_inline, matplotlib knows
# neither backend.
BACKENDS = ["module://matplotlib_inline.backend_inline", "backend_of_another_environment"]
EXPORTED = {"CLICOLOR": "1", "CLICOLOR_FORCE": "1", "FORCE_COLOR": "1", "GIT_PAGER": "cat", "PAGER": "cat"}
CELL = """
import os
os.environ |= {exported!r}
command = {command!r}
arguments = "--model mlp --set model.hidden=4 --clients 5 --cohort 2 --rounds 4 --out run"
!{{command}} run --algorithm fedavg {{arguments}}
!{{command}} report run --out page.html
!ls run run/figures
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shell_command_of_a_cell_ends_with_summary_report_and_progress(tmp_path, backend):
    nbformat = pytest.importorskip("nbformat")
    exported = EXPORTED | {"MPLBACKEND": backend, "PYTHONPATH": str(NOTEBOOKS[0].parent.parent)}
    cell = CELL.format(exported=exported, command=f"{sys.executable} -m fedjax_masks.cli")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    execute(notebook, tmp_path)
    text = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert not any(words in text for words in ("Traceback", "not drawn", "without figures", "\x1b[?25l"))
    assert "fedavg: 1/4 rounds" in text
    assert "fedavg: 4/4 rounds" in text
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["round"] == 4
    assert (tmp_path / "run" / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.html").read_text("utf-8").count("<svg") >= 3


SIMULATION = """
import optax
import fedjax_masks as fm
task = fm.load_task("digits", clients=5)
run = fm.simulate(fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1)), task, rounds=3, cohort=2)
import matplotlib.pyplot as plt
print(plt.get_backend())
run.plot()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_kernel_shows_progress_and_figures_and_keeps_its_own_backend(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SIMULATION)])
    execute(notebook, tmp_path)
    outputs = notebook.cells[0].outputs
    text = {name: "".join(o.text for o in outputs if o.get("name") == name) for name in ("stdout", "stderr")}
    assert text["stdout"] in ("inline\n", "module://matplotlib_inline.backend_inline\n")
    assert "simulate: 1/3 rounds" in text["stderr"]
    assert "simulate: 3/3 rounds" in text["stderr"]
    assert [list(o.data) for o in outputs if "data" in o][-1].count("image/png") == 1
