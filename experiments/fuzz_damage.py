"""Random damage to bytes, array files, archives and texts."""

import io
import zipfile
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator


class Fault(Exception):
    """An outcome other than acceptance or a clean refusal."""


HEADERS = (
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }", "{'descr': '|O', 'shape': (%d,)}"),
    *("{'descr': '<f4', 'fortran_order': True, 'shape': (-%d, 2), }", "{", "(" * 200, "[" * 9000, "1" * 9000),
    *("{'descr': [('a', '<f4', (%d,))], 'fortran_order': False, 'shape': (1,), }", "{[]: %d}", "'\\N{x}'"),
    *("{'descr': 'V%d', 'fortran_order': False, 'shape': (3,), }", "  {\n 1", '"""', "{'descr': None}"),
    *("{'descr': '<U%d', 'fortran_order': False, 'shape': (2, 2), }", "\0", "__import__('os')", "%dL"),
    *("{'descr': '<M8[%d]', 'fortran_order': False, 'shape': (2,), }", "{**{}}", "1 if 1 else %d"),
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (0, %d, %d), }", "-" * 5000 + "1"),
)
"""Headers of ``.npy`` files that claim too much or cannot be parsed; ``%d`` stands for a large number."""


def damaged(rng: Rng, data: bytes) -> bytes:
    """Flips, cuts, repeats, inserts or replaces bytes, up to four times."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(content) + 1))
        length = int(rng.integers(1, 17))
        noise = rng.bytes(length)
        kind = rng.integers(6)
        if kind == 0 and content:
            content[place % len(content)] ^= 1 << rng.integers(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = content[max(0, place - length) : place] * int(rng.integers(1, 50))
        elif kind == 3:
            content[place:place] = noise
        elif kind == 4:
            content[place : place + length] = noise
        else:
            del content[place : place + length]
    return bytes(content)


def npy(rng: Rng, array: np.ndarray) -> bytes:
    """A damaged ``.npy`` file: damage to any of its bytes, or a false header."""
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
    """A damaged archive: damage to any of its bytes, or a valid archive with one damaged array."""
    buffer = io.BytesIO()
    if rng.random() < 0.4:
        save: Callable[..., None] = np.savez if rng.random() < 0.5 else np.savez_compressed
        save(buffer, **arrays)
        return damaged(rng, buffer.getvalue())
    victim = str(rng.choice(list(arrays)))
    with zipfile.ZipFile(buffer, "w", int(rng.choice([0, 8, 12, 14]))) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", npy(rng, array) if name == victim else plain.getvalue())
    return buffer.getvalue()


def text(rng: Rng, valid: str, pieces: tuple[str, ...]) -> bytes:
    """A damaged text: damage to its bytes, or lines and pieces that do not belong there."""
    if rng.random() < 0.5:
        return damaged(rng, valid.encode())
    lines = valid.splitlines()
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(lines) + 1))
        lines[place:place] = [str(rng.choice(pieces)) * int(rng.choice([1, 1, 1, 3, 3000]))]
    return ("\n" if rng.random() < 0.7 else "").join(lines).encode()
