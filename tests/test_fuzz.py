"""Random and damaged input is accepted or refused in one clean line; experiments/ has a longer campaign."""

import io
import json
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.cli import main
from fedjax_masks.communication.payload import (
    AlreadyKnown,
    Conditional,
    Encoded,
    Installed,
    Masked,
    Quantized,
    Sparse,
    shape_only,
)
from fedjax_masks.communication.serialization import decode, encode
from fedjax_masks.core import trees
from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.costs.devices import Fleet, make_population
from fedjax_masks.data import load_task
from fedjax_masks.experiment import build, config, experiment
from fedjax_masks.models import parameters

short = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw, sound):
    """The bytes with a piece of them replaced by another, and perhaps cut."""
    at, end = sorted(draw(st.integers(0, len(sound))) for _ in range(2))
    whole = sound[:at] + draw(st.binary(max_size=20)) + sound[min(end, at + 20) :]
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


def one_line(error):
    text = str(error).removesuffix("\n")
    return text != "" and text.isprintable()


def command(capsys, *argv):
    """Runs a command line; whether it was accepted, and else it has said one line."""
    code = main.main(list(argv))
    out, error = capsys.readouterr()
    if code == 0:
        return True
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert one_line(error)
    return False


# --- configurations ---

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, "1e999", "nan", "9" * 5000, "a\nb", "\u2028", "[1,"]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(short, max_examples=300)
@given(st.sampled_from(sorted(REGISTRY)), st.data())
def test_random_values_make_a_configuration_or_are_refused(algorithm, data):
    known = sorted(config.keys(algorithm, "mlp"))
    given_values = data.draw(
        st.dictionaries(st.sampled_from(known) | st.text(max_size=8), VALUES, max_size=4)
    )
    try:
        made = config.make_config({"algorithm.name": algorithm, "model.name": "mlp"} | given_values)
    except UserError:
        return
    again = config.make_config(trees.flat(json.loads(json.dumps(config.as_dict(made)))))
    assert again == made


PARTITIONS = st.builds(
    lambda names, numbers, joint: joint.join([f"{n}:{x}" if x else n for n, x in zip(names, numbers)]),
    st.lists(
        st.sampled_from(["iid", "shards", "dirichlet", "quantity", "draw", "noise", "rotation"]), min_size=1
    ),
    st.lists(
        st.sampled_from(["", "2", "0", "-1", "1e-300", "1e300", "nan", "9" * 30, "²", "0,1"]), min_size=1
    ),
    st.sampled_from(["+", ":", ""]),
)


@settings(short, max_examples=40)
@given(PARTITIONS, st.sampled_from(["2", "50", "100000", "9" * 30]))
def test_random_partitions_divide_or_are_refused(partition, clients):
    with user_errors_only():
        config_of = {"algorithm.name": "local", "model.name": "mlp", "data.clients": clients}
        chosen = config.make_config({**config_of, "cohort": 1, "data.partition": partition})
        with user_errors():
            task = build.build(chosen)[1]
        assert task.num_clients == int(clients)
        assert (task.train.sizes > 0).all()


class user_errors_only:
    """Lets the package's own errors of one line pass, and nothing else."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return isinstance(error, UserError) and one_line(error)


TOML = b'rounds = 3\n[algorithm]\nname = "fedavg"\nlr = 0.1\n[model]\nname = "mlp"\nhidden = [8, 4]\n'


@short
@given(damaged(TOML))
@example(b"rounds = " + b"[" * 3000)
@example(b"rounds = " + b"{a=" * 3000)
@example(b"rounds = " + b"9" * 5000)
@example(TOML + b"seed = 0x" + b"f" * 4000)
@example(b'algorithm.name = "fedavg"\nalgorithm.lr = ' + b"9" * 400)
@example(b'"a\\nb" = 1')
def test_damaged_configuration_files(tmp_path, capsys, monkeypatch, content):
    monkeypatch.setattr(experiment, "run_experiment", lambda *args, **options: None)
    (tmp_path / "run.toml").write_bytes(content)
    command(capsys, "run", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "o"), "--quiet")


# --- payloads ---

PAYLOAD = [
    Masked(np.arange(6, dtype=np.float32), np.arange(6) % 2 == 0),
    Conditional(np.bool_(True), {"a": np.arange(3, dtype=np.int8), "b": np.array([True, False, True])}),
    Encoded(np.arange(4200) % 7 == 0),
    Sparse(np.ones(2, np.float16), np.array([0, 4], np.int32), shape_only((5,))),
    Quantized(np.array([-4, 3], np.int8), np.float32(1), np.zeros((3, 0), np.float32)),
    {"known": AlreadyKnown(np.arange(3)), "installed": Installed(np.ones((2, 2), np.float32))},
]


@settings(short, max_examples=300)
@given(damaged(encode(PAYLOAD)))
def test_damaged_payloads_are_refused_or_decode_to_a_payload_of_these_bytes(content):
    with user_errors_only():
        with user_errors():
            received = decode(content, PAYLOAD)
        assert encode(received) == content


@given(st.binary(max_size=64), st.integers(2**30, 2**50))
def test_a_short_payload_for_a_huge_array_allocates_nothing(content, size):
    arrays = [jax.ShapeDtypeStruct((size,), dtype) for dtype in (np.float32, bool, jax.numpy.int4)]
    for like in (*arrays, Encoded(arrays[1])):
        with pytest.raises(ValueError, match=r"truncated|must be intact"):
            decode(content, like)


# --- arrays and parameters ---

HEADERS = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-%d, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (0, %d, %d), }",
    "{'descr': '<U%d', 'fortran_order': False, 'shape': (2, 2), }",
    "{'descr': 'V%d', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': [('a', '<f4', (%d,))], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (40,), }",
    *("{", "{[]: %d}", '"""', "(" * 200, "[" * 9000, "-" * 5000 + "1", "__import__('os')", "  {\n 1", "\0"),
]


def npz(arrays, victim=None, content=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", content if name == victim else plain.getvalue())
    return buffer.getvalue()


DATA = {"x": np.ones((20, 4), np.float32), "y": np.arange(20) % 2}
PARAMS = {"conv1.kernel": np.ones((3, 3, 1, 2)), "conv1.bias": np.ones(2)}


def read_data(path):
    with user_errors_only(), user_errors():
        load_task(f"npz:{path}", clients=2)


def read_params(path):
    with user_errors_only():
        parameters.read(f"npz:{path}")


# The archive checks its members' sums, so that damage to it says little of how arrays are read.
@pytest.mark.parametrize(
    ("arrays", "victim", "read"), [(DATA, "x", read_data), (PARAMS, "conv1.bias", read_params)]
)
@pytest.mark.filterwarnings("ignore:Reading .*additional header parsing")
@settings(short, max_examples=150)
@given(st.data())
def test_hostile_headers_of_arrays_are_refused(tmp_path, arrays, victim, read, data):
    plain = io.BytesIO()
    np.save(plain, arrays[victim])
    text = data.draw(st.sampled_from(HEADERS)).replace("%d", str(10 ** data.draw(st.integers(1, 40))))
    version = data.draw(st.sampled_from([1, 2, 3]))
    header = b"\x93NUMPY" + bytes([version, 0]) + (len(text) + 1).to_bytes(2 if version == 1 else 4, "little")
    hostile = header + text.encode() + b"\n" + bytes(64)
    content = data.draw(st.just(hostile) | damaged(hostile) | damaged(plain.getvalue()))
    path = tmp_path / "arrays.npz"
    path.write_bytes(npz(arrays, victim, content))
    read(path)


@pytest.mark.parametrize(("arrays", "read"), [(DATA, read_data), (PARAMS, read_params)])
@short
@given(st.data())
def test_damaged_archives_are_read_or_refused(tmp_path, arrays, read, data):
    path = tmp_path / "arrays.npz"
    path.write_bytes(data.draw(damaged(npz(arrays))))
    read(path)


def safetensors_file(header):
    return len(header).to_bytes(8, "little") + header + bytes(8)


CLAIM = '{"w": {"dtype": "F32", "shape": [%d], "data_offsets": [0, %d]}}'


@short
@given(st.data())
def test_damaged_safetensors_are_read_or_refused(tmp_path, data):
    save = pytest.importorskip("safetensors.numpy").save
    claim = CLAIM.replace("%d", str(2 ** data.draw(st.integers(0, 63)))).encode()
    hostile = safetensors_file(
        data.draw(st.sampled_from([claim, b"[" * 5000, b'{"a":' * 900, b"null", b"{}"]))
    )
    path = tmp_path / "params.safetensors"
    path.write_bytes(data.draw(st.just(hostile) | damaged(hostile) | damaged(save(PARAMS))))
    with user_errors_only():
        parameters.read(f"safetensors:{path}")


# --- run directories and traces ---

TRACE = "\n".join([",".join(Fleet._fields), *[",".join(["1e6"] * len(Fleet._fields))] * 2]).encode()


@short
@given(damaged(TRACE))
@example(TRACE + b'\n"' + b"x" * 200_000)
@example(TRACE.replace(b"1e6", b"nan"))
@example(TRACE.replace(b"1e6", b"1e300"))
@example(TRACE.replace(b",", b"\0"))
@example(TRACE.replace(b"1e6", b"\x00\x0b1e6", 1))
def test_damaged_traces_are_read_or_refused(tmp_path, content):
    (tmp_path / "trace.csv").write_bytes(content)
    with user_errors_only():
        make_population(f"trace:{tmp_path}/trace.csv", 2)


STORED = json.dumps(config.as_dict(config.make_config({"algorithm.name": "fedavg"}))).encode()


@short
@given(damaged(STORED))
@example(b"[" * 100_000)
@example(b"[]")
@example(b"\xff")
@example(STORED[:-1] + b', "a\\nb": 1}')
def test_a_damaged_configuration_of_a_run_is_resumed_or_refused(tmp_path, capsys, monkeypatch, content):
    monkeypatch.setattr(experiment, "run_experiment", lambda *args, **options: None)
    (tmp_path / "config.json").write_bytes(content)
    command(capsys, "run", "--resume", "--quiet", "--out", str(tmp_path))
