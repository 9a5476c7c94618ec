"""Damaged payloads and damaged files of data, parameters and devices, passed to their readers."""

import json
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from fuzz_damage import Fault, Rng, damaged, npy, npz, text

from fedjax_masks.communication import payload, serialization
from fedjax_masks.costs import devices
from fedjax_masks.data import load_task
from fedjax_masks.data.files import count_clients, input_shape
from fedjax_masks.data.inputs import Channels
from fedjax_masks.data.scaling import Scale
from fedjax_masks.models import parameters

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "int8", "int4", "uint2", "bool")


def run_payload(rng: Rng, folder: Path) -> bool:
    """Decodes the damaged bytes of a random payload; the result must encode to the same bytes."""
    del folder
    like = _payload(rng)
    data = (
        rng.bytes(int(rng.integers(64))) if rng.random() < 0.2 else damaged(rng, serialization.encode(like))
    )
    if rng.random() < 0.05:  # a receiver that expects far more bytes than there are
        huge = jax.ShapeDtypeStruct((int(rng.integers(1, 2**40)), 2**10), np.float32)
        like = [like, huge, payload.Encoded(jax.ShapeDtypeStruct((2**24,), bool))]
    decoded = serialization.decode(data, like)
    if serialization.encode(decoded) != data:
        raise Fault("encodes to other bytes")
    return True


def _payload(rng: Rng, depth: int = 2) -> Any:
    """A random payload of NumPy arrays: jax arrays would double the time of a case."""
    shape = [(), (5,), (2, 0), (3, 1, 2)][rng.integers(4)]
    values: Any = rng.normal(size=shape).astype(np.float32)
    mask = rng.random(shape) < 0.5
    kind = rng.integers(7 if depth else 2)
    if kind < 2:
        return (8 * values).astype(jnp.dtype(str(rng.choice(DTYPES))))
    if kind == 2:
        return payload.Masked(values, mask)
    if kind == 3:
        flag: Any = np.bool_(rng.random() < 0.8)
        return payload.Conditional(flag, _payload(rng, depth - 1))
    if kind == 4:
        size = int(rng.choice([3, 40, 4100]))
        return payload.Encoded(rng.random(size) < rng.random())
    if kind == 5:
        size = int(rng.integers(1, 300))
        indices: Any = rng.permutation(size)[: size // 3 + 1].astype(np.int32)
        like: Any = np.zeros((size, 0), np.float32)
        return payload.Sparse(rng.random(len(indices), np.float32), indices, like)
    bits = int(rng.integers(1, 9))
    codes: Any = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    scale: Any = np.float32(1)
    like = np.zeros((bits, 0), np.float32)
    return [payload.Quantized(codes, scale, like), _payload(rng, depth - 1)]


def run_npz(rng: Rng, folder: Path) -> bool:
    """Loads data from a damaged archive or a damaged folder of arrays."""
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


def _arrays(rng: Rng) -> dict[str, np.ndarray]:
    labels = np.arange(20) % 3
    if rng.random() < 0.5:
        return {"x": rng.random((20, 4)), "y": labels, "client": labels}
    x = rng.integers(256, size=(20, 3, 3), dtype=np.uint8)
    return {"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}


def run_weights(rng: Rng, folder: Path) -> bool:
    """Reads a damaged file of parameters."""
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


def run_trace(rng: Rng, folder: Path) -> bool:
    """Reads a damaged trace of devices."""
    header = ",".join(devices.Fleet._fields)
    row = ",".join(["1e6"] * len(devices.Fleet._fields))
    pieces = (",", '"', "\0", "nan,", "inf", "-1", "\r", "1e999,", "flops,", ";", "é", "x" * 200)
    path = folder / "trace.csv"
    path.write_bytes(text(rng, "\n".join([header, row, row]), pieces))
    devices.make_population(f"trace:{path}", 2)
    return True
