"""Documentation: its Python runs, its commands parse, and every public name has a page."""

import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import optax
import pytest
from cases import algorithm as case

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.cli import commands as cli
from fedjax_masks.cli.flags import RUN_FLAGS, values_of
from fedjax_masks.cli.parser import make_parser
from fedjax_masks.experiment import config
from fedjax_masks.experiment.grid import read_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
EXPERIMENTS = ROOT / "experiments" / "README.md"
OWN_ALGORITHM = DOCS / "how-to" / "own-algorithm.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def hook(name: str):
    """A hook of mkdocs, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return hook("make_reference")


def commands(page: Path) -> list[list[str]]:
    """The calls of the command line in a page, without what a shell would do around them."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [line.partition(" > ")[0] for part in text.splitlines() for line in part.split("&&")]
    return [
        words[1:]
        for line in lines
        if (words := shlex.split(line, comments=True)) and words[0] == "fedjax-masks"
    ]


# The page on own algorithms says most; the others train what the suite trains elsewhere.
FAST = {"own-data", "sweeps"}
RUNNING = [
    pytest.param(page, id=page.stem, marks=[] if page.stem in FAST else pytest.mark.slow)
    for page in PAGES
    if blocks(page, "python")
]


@pytest.mark.parametrize("page", RUNNING)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names, registry = {"__name__": page.stem}, dict(REGISTRY)
    monkeypatch.setattr("fedjax_masks.algorithms.registry.REGISTRY", registry)
    for block in blocks(page, "python"):
        exec(compile(block, str(page.relative_to(ROOT)), "exec"), names)


SHORT = {"rounds=20, cohort=10": "rounds=1, cohort=2", "epochs=5": "epochs=1"}
QUICK = {"models.cnn(": "models.mlp("}


@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_the_readme_has_one_screen_and_eight_lines_that_run(model, monkeypatch):
    """With a perceptron, and as they are."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    (block,) = blocks(readme, "python")
    assert len(block.splitlines()) <= 8
    assert len(text.splitlines()) <= 60
    assert f" {len(REGISTRY)} algorithms " in text
    for long, short in (SHORT | QUICK if model == "mlp" else SHORT).items():
        assert long in block
        block = block.replace(long, short)
    exec(compile(block, "README.md", "exec"), {})


def test_links_in_the_readme_and_the_notes_lead_to_files():
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
            assert target.startswith("https://") or (ROOT / target).is_file(), (name, target)


def test_the_repository_has_one_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project["urls"]["Repository"]
    assert all(url.startswith(address) for url in project["urls"].values())
    assert f"repo_url: {address}\n" in (ROOT / "mkdocs.yml").read_text("utf-8")
    assert f"repository-code: {address}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


@pytest.mark.parametrize("page", [p for p in COMMANDS if commands(p)], ids=lambda p: p.stem)
def test_commands_are_accepted(page):
    for words in commands(page):
        arguments = make_parser().parse_args(words)
        if arguments.command is cli.run:
            config.make_config(values_of(arguments, RUN_FLAGS))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: p.stem)
def test_sweeps_are_accepted(page, tmp_path):
    for block in blocks(page, "toml"):
        (tmp_path / "sweep.toml").write_text(block, "utf-8")
        assert len(read_sweep(tmp_path / "sweep.toml")) > 1


def test_every_key_that_a_run_writes_is_explained():
    task = fm.load_task("digits", clients=4, partition="iid", examples_per_client=10)
    run = fm.simulate(fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1)), task, rounds=1, cohort=2)
    written = {*run.records[-1], *run.summary, "checkpoints_failed", "epsilon", "delta"}
    text = (DOCS / "reference" / "run-directory.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert explained == written


def own(name: str):
    """An algorithm of the page, and the lines that define it."""
    (block,) = (block for block in blocks(OWN_ALGORITHM, "python") if f"def {name}(" in block)
    names = {}
    exec(compile(block, name, "exec"), names)
    return names[name], [line for line in block.splitlines() if line.strip()]


def small(**options):
    task = fm.load_task("digits", clients=6, partition="shards:2", examples_per_client=30)
    return task, fm.models.mlp(task, hidden=(8,)), {"rounds": 2, "cohort": 3, **options}


@pytest.mark.parametrize(("name", "most"), [("finetuned", 30), ("fedper", 20)])
def test_a_personal_method_takes_few_lines(name, most):
    assert len(own(name)[1]) <= most


@pytest.mark.slow
def test_both_trainings_of_fine_tuning_count():
    finetuned, _ = own("finetuned")
    task, model, options = small()
    plain, tuned = (
        fm.simulate(algorithm, task, **options)
        for algorithm in (
            fm.fedavg(model, optax.sgd(0.1), epochs=2),
            finetuned(model, optax.sgd(0.1), epochs=2, tuning_epochs=3),
        )
    )
    assert tuned.records[-1]["client_flops"] == plain.records[-1]["client_flops"] * (2 + 3) / 2
    assert tuned.records[-1]["global_accuracy"] == plain.records[-1]["global_accuracy"]
    assert tuned.records[-1]["bytes_up_total"] == plain.records[-1]["bytes_up_total"]
    assert tuned.records[-1]["personal_accuracy_mean_seen"] > plain.records[-1]["personal_accuracy_mean_seen"]


@pytest.mark.slow
def test_fedper_shares_what_lgfedavg_keeps():
    fedper, _ = own("fedper")
    task, model, options = small()
    ours, other = (
        fm.simulate(algorithm, task, **options).records[-1]
        for algorithm in (
            fedper(model, optax.sgd(0.1), epochs=2),
            fm.lgfedavg(model, optax.sgd(0.1), epochs=2, shared=("dense1",)),
        )
    )
    timing = {"wall_seconds": 0}
    assert ours | timing == other | timing


@pytest.mark.slow
def test_a_file_with_an_algorithm_of_ones_own_has_the_command_line(tmp_path):
    algorithm, name = [
        block
        for block in blocks(OWN_ALGORITHM, "python")
        if "def shared_masks" in block or "REGISTRY" in block
    ]
    file = tmp_path / "shared_masks.py"
    file.write_text('"""Shared masks: one for all."""\n' + algorithm + name, "utf-8")

    def call(*words):
        command = [sys.executable, str(file), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert re.search("shared-masks +Shared masks: one for all", call("list", "algorithms"))
    few = ["--clients", "4", "--cohort", "2", "--rounds", "2", "--model", "mlp", "--out", "run", "--quiet"]
    call("run", "--algorithm", "shared-masks", "--set", "algorithm.lr=30", *few)
    assert "shared-masks" in call("report", "run", "--out", "own.html")


def test_the_page_of_benchmarks_is_made_of_the_committed_results():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_benchmarks.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in (*PAGES, EXPERIMENTS) if "<!-- table:" in page.read_text("utf-8")],
    ids=lambda page: page.name,
)
def test_tables_are_those_of_the_committed_results(page):
    text = page.read_text("utf-8")
    assert hook("make_tables").refreshed(text, figures=False) == text


def test_every_public_module_has_one_page(reference):
    folder = ROOT / "fedjax_masks"
    files = (path.relative_to(ROOT).with_suffix("").parts for path in folder.rglob("*.py"))
    names = {".".join(part for part in parts if part != "__init__") for parts in files}
    texts = [*(page.read_text("utf-8") for page in PAGES), *reference.pages().values()]
    included = [name for text in texts for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)]
    assert sorted(included) == sorted(name for name in names if not re.search(r"\._", name))


def test_every_public_definition_has_a_docstring():
    missing = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in (ROOT / "fedjax_masks").rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("name", sorted(set(fm.__all__) - {"models"}))
def test_public_names_are_on_the_page_of_their_module(name, reference):
    exported = getattr(fm, name)
    module = reference.modules()[exported.__module__]
    assert exported.__name__ in module.definitions
    assert inspect.getdoc(exported)


NAMES = {name.replace("-", "_") for name in REGISTRY} | {"masked_fedavg"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_algorithm_has_a_page_and_a_row(name):
    page = (DOCS / "algorithms" / f"{name}.md").read_text("utf-8")
    assert f"::: fedjax_masks.algorithms.{name}\n" in page
    assert "## Options" in page
    assert "## Method" in page
    assert (f"<!-- keys of: {name} -->" in page) == (name in REGISTRY)
    (row,) = re.findall(rf"^\| \[`{name}`\].*", (DOCS / "algorithms" / "index.md").read_text("utf-8"), re.M)
    models = {model.strip() for model in row.split("|")[-2].split(",")}
    assert models == set(case(name.replace("_", "-")).predict) & {"global", "personal"}


def test_tables_of_keys_are_complete(reference):
    marks = re.findall(r"<!-- keys: (\S+) -->", (DOCS / "reference" / "keys.md").read_text("utf-8"))
    shown = "".join(reference.on_page_markdown(f"<!-- keys: {mark} -->") for mark in marks)
    keys = set(re.findall(r"^\| `(\S+)` ", shown, re.MULTILINE))
    assert keys == {key for key in config.all_keys() if not key.startswith(("algorithm.", "model."))}


def test_an_algorithms_table_of_keys_escapes_what_markdown_would_read(reference):
    table = reference.on_page_markdown("<!-- keys of: fedmask -->")
    (row,) = (line for line in table.splitlines() if "`algorithm.prune_score`" in line)
    assert len(re.split(r"(?<!\\)\|", row)) == 6
    assert row.endswith("| one of change, magnitude | `change` |")
