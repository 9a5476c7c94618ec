"""Feeds random and damaged input to everything that reads: it is accepted, or refused in one clean line.

Configurations go through the command line up to the experiment that would run; damaged payloads through
``payload.decode``; damaged files through the readers of data, parameters, configurations, run directories
and traces. Every case has a budget of time and of memory, and a seed that brings it back:

    python experiments/fuzz_campaign.py config=10000 payload=100000 npz=10000
    python experiments/fuzz_campaign.py --case config:1234

Prints one JSON object; exits with 1 where anything but the package's own errors came out.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import jax
import numpy as np

from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.cli import main as cli
from fedjax_masks.communication import payload
from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.costs import devices
from fedjax_masks.data import load_task, prepared, sources
from fedjax_masks.data.arrays import Channels
from fedjax_masks.data.files import count_clients, input_shape
from fedjax_masks.data.scaling import Scale
from fedjax_masks.experiment import build, config, experiment
from fedjax_masks.experiment.run_directory import open_directory, read_records
from fedjax_masks.models import MODELS, parameters

SECONDS = 60  # that a case may take
BYTES = 3 << 30  # that a case may allocate
BATCH = 20_000  # cases of a process, at most

Rng = np.random.Generator


class Overtime(BaseException):
    """No handler of the package catches it."""


class Fault(Exception):
    """Something else than accepted or refused."""


# --- damage ---


def damaged(rng: Rng, data: bytes) -> bytes:
    """Flips, cuts, repeats, inserts or replaces bytes, a few times."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(content) + 1))
        length = int(rng.integers(1, 17))
        noise = rng.bytes(length)
        kind = rng.integers(6)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.integers(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = content[max(0, at - length) : at] * int(rng.integers(1, 50))
        elif kind == 3:
            content[at:at] = noise
        elif kind == 4:
            content[at : at + length] = noise
        else:
            del content[at : at + length]
    return bytes(content)


HEADERS = (
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }", "{'descr': '|O', 'shape': (%d,)}"),
    *("{'descr': '<f4', 'fortran_order': True, 'shape': (-%d, 2), }", "{", "(" * 200, "[" * 9000, "1" * 9000),
    *("{'descr': [('a', '<f4', (%d,))], 'fortran_order': False, 'shape': (1,), }", "{[]: %d}", "'\\N{x}'"),
    *("{'descr': 'V%d', 'fortran_order': False, 'shape': (3,), }", "  {\n 1", '"""', "{'descr': None}"),
    *("{'descr': '<U%d', 'fortran_order': False, 'shape': (2, 2), }", "\0", "__import__('os')", "%dL"),
    *("{'descr': '<M8[%d]', 'fortran_order': False, 'shape': (2,), }", "{**{}}", "1 if 1 else %d"),
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (0, %d, %d), }", "-" * 5000 + "1"),
)


def npy(rng: Rng, array: np.ndarray) -> bytes:
    """A damaged ``.npy`` file: any bytes of it, or what its header claims."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    if rng.random() < 0.5:
        return damaged(rng, buffer.getvalue())
    text = str(rng.choice(HEADERS)).replace("%d", str(10 ** int(rng.integers(1, 40))))
    if rng.random() < 0.3:
        text = damaged(rng, text.encode()).decode("latin1")
    header = text.encode("latin1", "replace") + b"\n"
    version = int(rng.integers(1, 4))
    length = len(header).to_bytes(2 if version == 1 else 4, "little", signed=False)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + array.tobytes()


def npz(rng: Rng, arrays: dict[str, np.ndarray]) -> bytes:
    """A damaged archive: any bytes of it, or a sound archive of damaged arrays."""
    buffer = io.BytesIO()
    if rng.random() < 0.4:
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(buffer, **arrays)
        return damaged(rng, buffer.getvalue())
    victim = str(rng.choice(list(arrays)))
    with zipfile.ZipFile(buffer, "w", int(rng.choice([0, 8, 12, 14]))) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", npy(rng, array) if name == victim else plain.getvalue())
    return buffer.getvalue()


def text(rng: Rng, sound: str, pieces: tuple[str, ...]) -> bytes:
    """A damaged text: bytes, or lines and pieces that do not belong there."""
    if rng.random() < 0.5:
        return damaged(rng, sound.encode())
    lines = sound.splitlines()
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(lines) + 1))
        lines[at:at] = [str(rng.choice(pieces)) * int(rng.choice([1, 1, 1, 3, 3000]))]
    return ("\n" if rng.random() < 0.7 else "").join(lines).encode()


# --- what is fed to what; each returns whether it was accepted ---

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 10, 64, 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), True, False, [], [1], [8, 8], [0], [-1], [1.5], ["x"], [[1]], [10**9]),
    *({}, {"a": 1}, "", " ", "none", "nan", "inf", "-inf", "1e999", "1_000", "٣", "é", "\u2028", "x" * 5000),
    *("0", "7", "-7", "0x10", "1,2", "1,,2", "[1]", "[", "a\nb", "\t", "%s", "{}", "../..", "/dev/null", "~"),
    *("iid", "shards:2", "shards:0", "shards:-1", "shards:" + "9" * 30, "shards:" + "9" * 5000, "natural"),
    *(
        "dirichlet:0.1",
        "dirichlet:1e-300",
        "dirichlet:1e300",
        "dirichlet:nan",
        "quantity:1e-9",
        "iid+noise:1",
    ),
    *("lotteryfl:2:0.25", "lotteryfl:1:1:1", "lotteryfl:2:0:0", "iid+rotation+rotation", "noise:1e308", "+"),
    *("corrupt_labels:0,1", "corrupt_labels:999", "corrupt_pixels:,", "iid:1", ":", "iid+", "npz:", "npy:/"),
    *(
        "rpi4@wifi",
        "rpi3:1+rpi4:3@wifi,deadline=60",
        "rpi4@wifi,deadline=0",
        "rpi4@wifi,spread=1e9",
        "@",
        ",",
    ),
    *("trace:/dev/null", "trace:none", "rpi4:1e308+rpi3:1e308@4g", "rpi4@wifi,dropout=1", "npz:/dev/null"),
    *("npz:none", "safetensors:none", "safetensors:/dev/null", "orbax:/", "orbax:none", "random", "group"),
    *("digits", "mnist", "cifar10", "emnist/byclass", "sgd", "adam", "adamw", "vmap", "scan", "blocks(3)"),
    *(
        "blocks(0)",
        "blocks(" + "9" * 30 + ")",
        "scan@3",
        "auto",
        "batch",
        "crop_flip",
        "hard",
        "soft",
        "true",
    ),
)
SURROGATE = "\udcff"  # a byte of a command line that is no UTF-8


def _key(rng: Rng, known: list[str]) -> str:
    key = str(rng.choice(known))
    if rng.random() < 0.03:
        return damaged(rng, key.encode()).decode("latin1").replace("=", "")
    return key


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str | bool) else repr(value)


def run_config(rng: Rng, folder: Path) -> bool:
    """A random configuration, on the command line and in a file, up to the experiment."""
    # Most of the time would go to tracing deep models.
    algorithm, model = str(rng.choice(list(REGISTRY))), "mlp"
    if rng.random() < 0.1:
        model = str(rng.choice(list(MODELS)))
    known = [key for key in config.keys(algorithm, model) if not key.endswith("cache_dir")]
    given = {"algorithm.name": algorithm}
    if rng.random() < 0.95:
        given["model.name"] = model
    for _ in range(rng.integers(0, 4)):
        key = _key(rng, known)
        given[key] = VALUES[rng.integers(len(VALUES))]
    # Trains, for as long as it is told to; what it is told is tried without it.
    if given.get("pretraining.source", "random") in ("fractal", "public"):
        del given["pretraining.source"]
    argv, lines = ["run", "--quiet", "--out", str(folder / "out")], []
    for key, value in given.items():
        quoted = json.dumps(key) if rng.random() < 0.1 else key
        if rng.random() < 0.4:
            lines.append(f"{quoted} = {_toml(value)}")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            argv += ["--set", f"{key}={shown}" + SURROGATE * (rng.random() < 0.01)]
    if lines:
        (folder / "run.toml").write_text("\n".join(lines), "utf-8", "surrogateescape")
        argv += ["--config", str(folder / "run.toml")]
    with mock.patch.object(experiment, "run_experiment", _only_build):
        return _command(argv)


def _only_build(chosen: config.Config, out: str, **options: Any) -> None:
    with user_errors():
        open_directory(Path(out), chosen, resume=options["resume"])
        build.build(chosen)


def _command(argv: list[str]) -> bool:
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(argv)
        except ValueError as error:
            raise Fault("a traceback") from error
    said = output.getvalue()
    if code == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said.splitlines()) == 1:
        raise UserError(said)
    if code or said:
        raise Fault(f"exit code {code}, said {said!r}")
    return True


def run_toml(rng: Rng, folder: Path) -> bool:
    """A damaged configuration file, on the command line."""
    sound = (
        'rounds = 3\ncohort = 2\nseed = 0\n[algorithm]\nname = "fedavg"\nlr = 0.1\n'
        '[data]\nname = "digits"\npartition = "shards:2"\n[model]\nname = "mlp"\nhidden = [8, 4]\n'
    )
    pieces = (
        *("[", "]", "[[", "{", "a={", "x=[", "a.", '"', "'''", '"""', "\\u0000", "=", "a.b=1", "[model]"),
        *("x=1979-05-27T07:32:00Z", "seed=0x" + "f" * 50, "rounds=" + "9" * 5000, "hidden=1e999", "[a.b]"),
        *("[[data]]", "name='\x00'", "lr=nan", "cohort=true", "\r", "#", "\ufeff", "data.name=1", "'a\nb'=1"),
    )
    path = folder / "run.toml"
    path.write_bytes(text(rng, sound, pieces))
    with mock.patch.object(experiment, "run_experiment", _only_build):
        return _command(["run", "--config", str(path), "--quiet", "--out", str(folder / "out")])


DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "int8", "int4", "uint2", "bool")


def _payload(rng: Rng, depth: int = 2) -> Any:
    shape = [(), (5,), (2, 0), (3, 1, 2)][rng.integers(4)]
    values, mask = rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.5
    kind = rng.integers(7 if depth else 2)
    if kind < 2:
        return (8 * values).astype(jax.numpy.dtype(str(rng.choice(DTYPES))))
    if kind == 2:
        return payload.Masked(values, mask)
    if kind == 3:
        return payload.When(np.bool_(rng.random() < 0.8), _payload(rng, depth - 1))
    if kind == 4:
        size = int(rng.choice([3, 40, 4100]))
        return payload.Encoded(rng.random(size) < rng.random())
    if kind == 5:
        size = int(rng.integers(1, 300))
        picked = rng.permutation(size)[: size // 3 + 1].astype(np.int32)
        like = np.zeros((size, 0), np.float32)
        return payload.Sparse(rng.random(len(picked), np.float32), picked, like)
    num = int(rng.integers(1, 9))
    codes = rng.integers(-(2 ** (num - 1)), 2 ** (num - 1), shape).astype(np.int8)
    return [payload.Quantized(codes, np.float32(1), np.zeros((num, 0), np.float32)), _payload(rng, depth - 1)]


def run_payload(rng: Rng, folder: Path) -> bool:
    """Damaged bytes of a random payload: they mean exactly themselves, or nothing."""
    del folder
    like = _payload(rng)
    data = rng.bytes(int(rng.integers(64))) if rng.random() < 0.2 else damaged(rng, payload.encode(like))
    if rng.random() < 0.05:  # a receiver that expects far more than was sent
        huge = jax.ShapeDtypeStruct((int(rng.integers(1, 2**40)), 2**10), np.float32)
        like = [like, huge, payload.Encoded(jax.ShapeDtypeStruct((2**24,), bool))]
    received = payload.decode(data, like)
    if payload.encode(received) != data:
        raise Fault("encodes to other bytes")
    return True


def _arrays(rng: Rng) -> dict[str, np.ndarray]:
    labels = np.arange(20) % 3
    if rng.random() < 0.5:
        return {"x": rng.random((20, 4)), "y": labels, "client": labels}
    x = rng.integers(256, size=(20, 3, 3), dtype=np.uint8)
    return {"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}


def run_npz(rng: Rng, folder: Path) -> bool:
    """A damaged archive, or folder of arrays, as data."""
    arrays = _arrays(rng)
    partition = "natural" if "client" in arrays else "iid"
    if rng.random() < 0.8:
        (folder / "data.npz").write_bytes(npz(rng, arrays))
        name = f"npz:{folder}/data.npz"
    else:
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        victim = str(rng.choice(list(arrays)))
        (folder / f"{victim}.npy").write_bytes(npy(rng, arrays[victim]))
        name = f"npy:{folder}"
    options = {
        "scale": str(rng.choice(get_args(Scale))),
        "channels": str(rng.choice(get_args(Channels))),
        "relabel": bool(rng.integers(2)),
        "classes": [None, 3, 100][rng.integers(3)],
    }
    input_shape(name)
    count_clients(name)
    load_task(name, clients=2, partition=partition, **options)
    return True


def run_weights(rng: Rng, folder: Path) -> bool:
    """A damaged file of parameters."""
    from safetensors.numpy import save

    arrays = {"conv1.kernel": rng.random((3, 3, 1, 2)), "conv1.bias": rng.random(2), "dense": rng.random(4)}
    if rng.random() < 0.2:
        arrays |= {"conv1": rng.random(1), "": rng.random(1), "..": rng.random(1)}
    kind = str(rng.choice(["npz", "safetensors"]))
    data = npz(rng, arrays) if kind == "npz" else damaged(rng, save(arrays))
    if kind == "safetensors" and rng.random() < 0.5:
        extra = ('{"__metadata__":{"a":1}}', "[" * 5000, '{"a":' * 900, "null", "{}", "[]", '"\\ud800"')
        claim = {
            "dtype": str(rng.choice(["F32", "BF16", "F8_E4M3", "I128", "BOOL", "U64"])),
            "shape": [int(n) for n in rng.choice([0, 1, 2, -1, 2**40, 2**62], 2)],
            "data_offsets": [int(n) for n in rng.choice([0, 4, 8, 2**40, 2**63 - 1], 2)],
        }
        header = str(rng.choice([*extra, json.dumps({"w": claim})])).encode()
        length = len(header) if rng.random() < 0.9 else int(rng.integers(2**62))
        data = length.to_bytes(8, "little") + header + bytes(8)
    path = folder / f"params.{kind}"
    path.write_bytes(data)
    parameters.read(f"{kind}:{path}")
    return True


def run_directory(rng: Rng, folder: Path) -> bool:
    """A run directory whose files are damaged: read to resume it, and to report it."""
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


def _only_resume(chosen: config.Config, out: str, **options: Any) -> None:
    with user_errors():
        open_directory(Path(out), chosen, resume=options["resume"])
        read_records(Path(out), 2**62)


def run_trace(rng: Rng, folder: Path) -> bool:
    """A damaged trace of devices."""
    header = ",".join(devices.Fleet._fields)
    row = ",".join(["1e6"] * len(devices.Fleet._fields))
    pieces = (",", '"', "\0", "nan,", "inf", "-1", "\r", "1e999,", "flops,", ";", "é", "x" * 200)
    path = folder / "trace.csv"
    path.write_bytes(text(rng, "\n".join([header, row, row]), pieces))
    devices.make_population(f"trace:{path}", 2)
    return True


KINDS: dict[str, Callable[[Rng, Path], bool]] = {
    "config": run_config,
    "toml": run_toml,
    "payload": run_payload,
    "npz": run_npz,
    "weights": run_weights,
    "directory": run_directory,
    "trace": run_trace,
}

KINDS_REFUSE = {"payload": ValueError, "npz": ValueError}
"""What refuses in Python; all else is the command line's, or speaks like it."""

# --- one process ---


@contextlib.contextmanager
def budget() -> Iterator[None]:
    """A limit of time; what runs over it is stopped."""

    def stop(*_: Any) -> None:
        raise Overtime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(kind: str, seed: int, number: int) -> str:
    """``accepted``, ``refused``, or what else happened."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required additional header")
        try:
            with budget():
                KINDS[kind](rng, Path(folder))
        except Overtime:
            return f"took more than {SECONDS} s: {_where()}"
        except KINDS_REFUSE.get(kind, UserError) as error:
            return "refused" if len(str(error).strip().splitlines()) == 1 else f"several lines: {error!r}"
        except BaseException:
            return _where()
    return "accepted"


def _where() -> str:
    last = traceback.format_exc().strip().splitlines()
    frames = [line.strip() for line in last if line.strip().startswith("File ")]
    return " | ".join([last[-1][:300], *frames[-3:]])


def work(kind: str, seed: int, first: int, last: int, journal: Path) -> None:
    """Runs cases, and writes down which one is next, so that a sudden end can be told."""
    # What would train or download is not reached, and digits are read once.
    images = sources.digits()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    with (
        mock.patch.object(sources, "digits", return_value=images),
        mock.patch.object(prepared, "_prepare", _no_network),
        open(journal, "w", buffering=1) as file,
    ):
        for number in range(first, last):
            file.write(json.dumps({"began": number}) + "\n")
            before = time.perf_counter()
            result = {"outcome": outcome(kind, seed, number), "seconds": time.perf_counter() - before}
            file.write(json.dumps(result) + "\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        file.write(json.dumps({"peak_megabytes": round(peak)}) + "\n")


def _no_network(*args: Any, **options: Any) -> None:
    raise ConnectionError("no network")


# --- the campaign ---


def campaign(kind: str, cases: int, seed: int, end: float, folder: Path) -> dict[str, Any]:
    """Runs cases in processes of their own; a process that dies is replaced."""
    counts, faults, slowest, peak, began, at = Counter(), {}, 0.0, 0, time.monotonic(), 0
    while at < cases and time.monotonic() < end:
        journal = folder / f"{kind}.jsonl"
        last = min(cases, at + BATCH)
        command = [sys.executable, __file__, "--work", kind, str(at), str(last), str(journal)]
        process = subprocess.Popen([*command, "--seed", str(seed)], stderr=subprocess.PIPE, text=True)
        try:
            _, stderr = process.communicate(timeout=max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
        for line in map(json.loads, journal.read_text().splitlines()):
            peak = max(peak, line.get("peak_megabytes", 0))
            at = line.get("began", at)
            if "outcome" not in line:
                continue
            at, slowest = at + 1, max(slowest, line["seconds"])
            clean = line["outcome"] in ("accepted", "refused")
            counts[line["outcome"] if clean else "fault"] += 1
            if not clean:
                faults.setdefault(line["outcome"], []).append(at - 1)
        if process.returncode and time.monotonic() < end:
            counts["fault"] += 1
            faults[f"died with {process.returncode}: {stderr[-500:]}"] = [at]
            at += 1
    return {
        "cases": sum(counts.values()),
        **{name: counts[name] for name in ("accepted", "refused", "fault")},
        "slowest_seconds": round(slowest, 2),
        "peak_megabytes": peak,
        "seconds": round(time.monotonic() - began, 1),
        "faults": {what: numbers[:5] for what, numbers in faults.items()},
    }


def main() -> int:
    """Runs the campaign, or one case, that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("campaigns", nargs="*", metavar="KIND=CASES", help=", ".join(KINDS))
    parser.add_argument("--case", metavar="KIND:NUMBER", help="run one case and show what happens")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e4, help="start no more cases after so long")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.work:
        kind, first, last, journal = args.work
        work(kind, args.seed, int(first), int(last), Path(journal))
        return 0
    if args.case:
        kind, _, number = args.case.partition(":")
        print(outcome(kind, args.seed, int(number)))
        return 0
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-campaign-") as folder:
        wanted = dict(text.split("=") for text in args.campaigns)
        figures = {
            kind: campaign(kind, int(cases), args.seed, end, Path(folder)) for kind, cases in wanted.items()
        }
    print(json.dumps({"seed": args.seed, "seconds_per_case": SECONDS, **figures}, indent=2))
    return int(any(found["fault"] for found in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
