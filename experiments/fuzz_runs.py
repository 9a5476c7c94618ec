"""Random and damaged input of the command line: configurations, configuration files, run directories."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_damage import Fault, Rng, damaged, text

from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.cli import main as cli
from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.experiment import build, config, experiment
from fedjax_masks.experiment.run_directory import open_directory, read_records
from fedjax_masks.models import MODELS

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 10, 64, 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), True, False, [], [1], [8, 8], [0], [-1], [1.5], ["x"], [[1]], [10**9]),
    *({}, {"a": 1}, "", " ", "none", "nan", "inf", "-inf", "1e999", "1_000", "٣", "é", "\u2028", "x" * 5000),
    *("0", "7", "-7", "0x10", "1,2", "1,,2", "[1]", "[", "a\nb", "\t", "%s", "{}", "../..", "/dev/null", "~"),
    *("iid", "shards:2", "shards:0", "shards:-1", "shards:" + "9" * 30, "shards:" + "9" * 5000, "natural"),
    *("dirichlet:0.1", "dirichlet:1e-300", "dirichlet:1e300", "dirichlet:nan", "quantity:1e-9"),
    *("iid+noise:1", "lotteryfl:2:0.25", "lotteryfl:1:1:1", "lotteryfl:2:0:0", "iid+rotation+rotation"),
    *("noise:1e308", "+", "corrupt_labels:0,1", "corrupt_labels:999", "corrupt_pixels:,", "iid:1", ":"),
    *("iid+", "npz:", "npy:/", "rpi4@wifi", "rpi3:1+rpi4:3@wifi,deadline=60", "rpi4@wifi,deadline=0"),
    *("rpi4@wifi,spread=1e9", "@", ",", "trace:/dev/null", "trace:none", "rpi4:1e308+rpi3:1e308@4g"),
    *("rpi4@wifi,dropout=1", "npz:/dev/null", "npz:none", "safetensors:none", "safetensors:/dev/null"),
    *("orbax:/", "orbax:none", "random", "group", "digits", "mnist", "cifar10", "emnist/byclass", "sgd"),
    *("adam", "adamw", "vmap", "scan", "blocks(3)", "blocks(0)", "blocks(" + "9" * 30 + ")", "scan@3"),
    *("auto", "batch", "crop_flip", "hard", "soft", "true"),
)
SURROGATE = "\udcff"  # a byte of a command line that is not UTF-8


def run_config(rng: Rng, folder: Path) -> bool:
    """Passes a random configuration to ``run``, as flags and as a file, up to the building of the run."""
    # Tracing deep models would take most of the time.
    algorithm, model = str(rng.choice(list(REGISTRY))), "mlp"
    if rng.random() < 0.1:
        model = str(rng.choice(list(MODELS)))
    keys = [key for key in config.keys(algorithm, model) if not key.endswith("cache_dir")]
    values = {"algorithm.name": algorithm}
    if rng.random() < 0.95:
        values["model.name"] = model
    for _ in range(rng.integers(0, 4)):
        key = _key(rng, keys)
        values[key] = VALUES[rng.integers(len(VALUES))]
    # These sources train for as many epochs as the keys say; the other keys are tried without them.
    if values.get("pretraining.source", "random") in ("fractal", "public"):
        del values["pretraining.source"]
    argv, lines = ["run", "--quiet", "--out", str(folder / "out")], []
    for key, value in values.items():
        quoted = json.dumps(key) if rng.random() < 0.1 else key
        if rng.random() < 0.4:
            lines.append(f"{quoted} = {_toml(value)}")
        else:
            word = value if isinstance(value, str) else json.dumps(value)
            argv += ["--set", f"{key}={word}" + SURROGATE * (rng.random() < 0.01)]
    if lines:
        (folder / "run.toml").write_text("\n".join(lines), "utf-8", "surrogateescape")
        argv += ["--config", str(folder / "run.toml")]
    with mock.patch.object(experiment, "run_experiment", _only_build):
        return _command(argv)


def _key(rng: Rng, keys: list[str]) -> str:
    key = str(rng.choice(keys))
    if rng.random() < 0.03:
        return damaged(rng, key.encode()).decode("latin1").replace("=", "")
    return key


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str | bool) else repr(value)


def _only_build(chosen: config.Config, out: str, **options: Any) -> None:
    with user_errors():
        open_directory(Path(out), chosen, resume=options["resume"])
        build.build(chosen)


def _only_resume(chosen: config.Config, out: str, **options: Any) -> None:
    with user_errors():
        open_directory(Path(out), chosen, resume=options["resume"])
        read_records(Path(out), 2**62)


def _command(argv: list[str]) -> bool:
    """Runs the command line.

    Raises:
      UserError: The command refused its input in one line.
      Fault: The command did something else than to succeed in silence.
    """
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(argv)
        except ValueError as error:
            raise Fault("a traceback") from error
    message, _, rest = stderr.getvalue().partition("\n")
    if code == 2 and message.startswith("error: ") and message.isprintable() and not rest:
        raise UserError(message)
    message += rest
    if code or message:
        raise Fault(f"exit code {code}, message {message!r}")
    return True


def run_toml(rng: Rng, folder: Path) -> bool:
    """Passes a damaged configuration file to ``run``."""
    valid = (
        'rounds = 3\ncohort = 2\nseed = 0\n[algorithm]\nname = "fedavg"\nlr = 0.1\n'
        '[data]\nname = "digits"\npartition = "shards:2"\n[model]\nname = "mlp"\nhidden = [8, 4]\n'
    )
    pieces = (
        *("[", "]", "[[", "{", "a={", "x=[", "a.", '"', "'''", '"""', "\\u0000", "=", "a.b=1", "[model]"),
        *("x=1979-05-27T07:32:00Z", "seed=0x" + "f" * 50, "rounds=" + "9" * 5000, "hidden=1e999", "[a.b]"),
        *("[[data]]", "name='\x00'", "lr=nan", "cohort=true", "\r", "#", "\ufeff", "data.name=1", "'a\nb'=1"),
    )
    path = folder / "run.toml"
    path.write_bytes(text(rng, valid, pieces))
    with mock.patch.object(experiment, "run_experiment", _only_build):
        return _command(["run", "--config", str(path), "--quiet", "--out", str(folder / "out")])


def run_directory(rng: Rng, folder: Path) -> bool:
    """Damages a file of a run directory, and resumes or reports the run."""
    chosen = config.make_config({"algorithm.name": "fedavg"})
    record = {"round": 1, "global_accuracy": 0.5, "bytes_up_total": 3, "extra": {}, "wall_seconds": 1.0}
    contents = {
        "config.json": json.dumps(config.as_dict(chosen), indent=1),
        "metrics.jsonl": json.dumps(record) + "\n" + json.dumps(record) + "\n",
        "summary.json": json.dumps(record),
    }
    pieces = ("{", "}", "[", "]", '"', "null", "NaN", "-", ":", ",", '"a":', '{"a":', "1e999", "9" * 50, "\0")
    victim = str(rng.choice(list(contents)))
    out = folder / "run"
    out.mkdir()
    for name, content in contents.items():
        (out / name).write_bytes(text(rng, content, pieces) if name == victim else content.encode())
    if rng.random() < 0.5:
        return _command(["report", str(out), "--out", str(folder / "report.html")])
    with mock.patch.object(experiment, "run_experiment", _only_resume):
        return _command(["run", "--resume", "--quiet", "--out", str(out)])
