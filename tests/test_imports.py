"""Imports: packages point downwards, and commands about names and files need no jax."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedjax_masks
from fedjax_masks.experiment.config import as_dict, make_config

PACKAGE = Path(fedjax_masks.__file__).parent
HEAVY = {"chex", "flax", "jax", "jaxlib", "optax"}
COMMANDS = """
import json, sys
from fedjax_masks.cli.main import main
heavy, found = set(json.loads(sys.argv[1])), []
for argv in json.loads(sys.argv[2]):
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    found.append((code, sorted(heavy & sys.modules.keys())))
print(json.dumps(found), file=sys.stderr)
"""
ORDER = (
    {"cli"},
    {"claims", "benchmarks"},
    {"analysis"},
    {"experiment"},
    {"algorithms"},
    {"transforms"},
    {"aot"},
    {"simulation"},
    {"programs"},
    {"models"},
    {"costs"},
    {"data"},
    {"communication"},
    {"ops"},
    {"core"},
)
# A function may look up for figures alone: a run is drawn where it ends, by the package that reads runs.
LOOKS_UP = {
    ("experiment/execution.py", "analysis"),
    ("experiment/run.py", "analysis"),
}


def modules_of(code: str, *arguments: object) -> tuple[str, set[str]]:
    """The first word, and the names of modules, in the last line that a program prints on stderr."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, *modules = done.stderr.splitlines()[-1].split()
    return first, set(modules)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on disk, as far as a report needs them."""
    root = tmp_path_factory.mktemp("runs")
    for name, accuracy in (("fedavg", 0.5), ("local", 0.75)):
        config = make_config({"algorithm.name": name, "data.clients": 5, "rounds": 2})
        record = {
            "global_accuracy": accuracy,
            "personal_accuracy_mean": accuracy,
            "num_clients": 5,
            **dict.fromkeys(("bytes_up", "bytes_down", "bytes_up_total", "bytes_down_total"), 100),
        }
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(as_dict(config)))
        lines = [json.dumps({"round": number, **record}) + "\n" for number in (1, 2)]
        (root / name / "metrics.jsonl").write_text("".join(lines))
        summary = {"round": 2, **record, "client_accuracy": [accuracy] * 5}
        (root / name / "summary.json").write_text(json.dumps(summary))
    return root


LIGHT = [
    ["--help"],
    ["--version"],
    ["run", "--help"],
    ["list"],  # every kind
    ["list", "keys", "--json"],
    ["list", "keys", "--algorithm", "fedmask", "--model", "mlp"],
    ["compare", "RUNS"],
    ["report", "RUNS", "--out", "RUNS/report.html", "--tables", "RUNS/tables"],
    ["run", "--algorithm", "fedmsk", "--out", "RUNS/none"],
    ["run", "--algorithm", "fedavg", "--mu", "1", "--out", "RUNS/none"],
]


@pytest.fixture(scope="module")
def light_commands(runs):
    """Each command's exit code, and what is heavy and imported by then; all run in one process, in order."""
    commands = [[word.replace("RUNS", str(runs)) for word in argv] for argv in LIGHT]
    words = [sys.executable, "-c", COMMANDS, json.dumps(sorted(HEAVY)), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(zip(map(" ".join, LIGHT), json.loads(done.stderr.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("argv", LIGHT, ids=" ".join)
def test_commands_about_names_and_files_import_no_jax(light_commands, argv):
    code, heavy = light_commands[" ".join(argv)]
    assert code == (2 if argv[:2] == ["run", "--algorithm"] else 0)
    assert heavy == []


def test_configurations_are_made_and_a_task_is_loaded_without_jax(tmp_path):
    (tmp_path / "run.toml").write_text('rounds = 3\n[algorithm]\nname = "fedavg"\n')
    given = {
        "attack.kind": "nan",
        "devices": "rpi4@wifi",
        "model.name": "resnet18",
        "pretraining.source": "fractal",
        "server_optimizer.name": "adam",
        "storage.clients": "host",
        "training.precision": "bfloat16",
        "training.schedule": "cosine+warmup:2",
        "wire.up": "top_k:0.1",
    }
    code = f"""
import sys
from fedjax_masks.data import load_task
from fedjax_masks.experiment.config import make_config, read_file
from fedjax_masks.experiment.grid import read_sweep
config = make_config(read_file(sys.argv[1]) | {given})
assert len(read_sweep(sys.argv[1])) == 1
assert load_task("digits", clients=5).num_clients == 5
print(config.rounds, *sys.modules, file=sys.stderr)
"""
    rounds, modules = modules_of(code, tmp_path / "run.toml")
    assert rounds == "3"
    assert not HEAVY & modules


@pytest.mark.parametrize(
    "module", ["fedjax_masks", "fedjax_masks.cli.main", "fedjax_masks.algorithms.registry"]
)
def test_what_every_command_imports_needs_no_arrays(module):
    _, modules = modules_of(f"import sys, {module}\nprint('-', *sys.modules, file=sys.stderr)")
    assert module in modules
    assert not (HEAVY | {"numpy", "scipy", "matplotlib", "rich"}) & modules


@pytest.mark.parametrize("name", ["data", "models", "simulation"])
def test_names_that_are_imported_late_exist_and_hide_no_module(name):
    package = importlib.import_module(f"fedjax_masks.{name}")
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is not None
        # The import of a module puts it into its package under its own name, over what was there.
        assert not (PACKAGE / name / f"{public}.py").exists()
    with pytest.raises(AttributeError, match=f"module 'fedjax_masks.{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """The packages that a file imports from, each with whether a function imports it."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                modules = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}: relative import"
                whole = child.module == "fedjax_masks"
                modules = [f"{child.module}.{alias.name}" if whole else child.module for alias in child.names]
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
                continue
            for module in modules:
                root, _, rest = (module or "").partition(".")
                package = rest.partition(".")[0]
                if root == "fedjax_masks" and (PACKAGE / package).is_dir():
                    yield package, inside

    yield from walk(ast.parse(path.read_text("utf-8")), False)


def test_packages_import_those_below_them():
    rank = {name: place for place, names in enumerate(ORDER) for name in names}
    assert set(rank) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    up, late = set(), set()
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        place = path.relative_to(PACKAGE)
        for package, inside in imports_of(path):
            beside = package != place.parts[0] and rank[package] == rank[place.parts[0]]
            if rank[package] < rank[place.parts[0]] or beside:
                (late if inside else up).add((place.as_posix(), package))
    assert not up
    assert late == LOOKS_UP
