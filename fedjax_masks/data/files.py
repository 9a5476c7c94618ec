"""A user's own arrays in ``.npz`` and ``.npy`` files.

Keys: ``x_train``, ``y_train``, ``x_test``, ``y_test`` and, where examples have natural clients,
``client_train`` and ``client_test``; or ``x``, ``y`` and ``client``, of which a fifth is held
out for testing, always the same. Case does not matter, and ``client_ids``, ``user``, ``user_id`` and the
like stand for ``client``. A logged line names arrays that are not read. Pickled objects are never loaded.
"""

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from fedjax_masks.core.errors import UserError, regular_file
from fedjax_masks.core.messages import warn
from fedjax_masks.data.array_checks import abbreviate, array_error
from fedjax_masks.data.arrays import (
    AUTO,
    OWNERS,
    SPLIT,
    WHOLE,
    ArrayOptions,
    check_arrays,
    check_keys,
    keys_in_use,
)
from fedjax_masks.data.examples import Source

_KEYS = (*SPLIT, *WHOLE, *OWNERS)
_OWNER = re.compile(r"(train_|test_)?(?:client|user)s?(?:_?ids?)?(_train|_test)?", re.ASCII)
_Fact = TypeVar("_Fact")


class _Entry(NamedTuple):
    """An array in a file.

    Attributes:
      load: Reads the array.
      shape: Reads its shape, from a header.
    """

    load: Callable[[], np.ndarray]
    shape: Callable[[], tuple[int, ...]]


def read_npz(path: Path, options: ArrayOptions = AUTO) -> Source:
    """Reads ``.npz`` arrays; see the module's description for the keys.

    Raises:
      UserError: The file cannot be read, or an array is not as described.
    """
    name = f"npz:{path}"
    try:
        with _npz(name, path) as entries:
            return _read(name, entries, options)
    except OSError as error:
        raise _not_npz(name, _reason(error)) from None


def read_npy(path: Path, options: ArrayOptions = AUTO) -> Source:
    """Memory-maps the arrays of a folder, ``x_train.npy`` and so on.

    Raises:
      UserError: A file cannot be read, or an array is not as described.
    """
    name = f"npy:{path}"
    if not path.is_dir():
        raise UserError(f"data.name={name!r}: must be a folder with x_train.npy and so on; no such folder")
    return _read(name, _npy(path), options)


def input_shape(name: str) -> tuple[int, ...] | None:
    """The shape of one input, read from a header; None where there is none to read.

    Args:
      name: ``npz:PATH`` or ``npy:DIR``.
    """
    shape = _first_entry(name, ("x_train", "x"), lambda entry: entry.shape())
    return None if shape is None else tuple(shape[1:])


def count_clients(name: str) -> int | None:
    """The number of natural clients with training examples; None where there are none to read.

    Args:
      name: ``npz:PATH`` or ``npy:DIR``.
    """
    return _first_entry(name, ("client_train", "client"), lambda entry: len(np.unique(entry.load())))


def _first_entry(name: str, keys: Sequence[str], look: Callable[[_Entry], _Fact]) -> _Fact | None:
    """A fact about the first entry of some keys; None where there is none, or reading it fails."""
    kind, _, path = name.partition(":")
    folder = Path(path).expanduser()
    try:
        with _npz(name, folder) if kind == "npz" else nullcontext(_npy(folder)) as entries:
            names = _names_by_key(name, entries)
            return look(entries[next(names[key] for key in keys if key in names)])
    except Exception:  # a hostile header makes NumPy raise nearly anything
        return None


def _read(name: str, entries: Mapping[str, _Entry], options: ArrayOptions) -> Source:
    names = _names_by_key(name, entries)
    check_keys(name, names, names=entries)
    keys = keys_in_use(names)
    arrays = {key: _load(name, names[key], entries[names[key]].load) for key in names if key in keys}
    source = check_arrays(name, arrays, options)
    spare = sorted(set(entries) - {names[key] for key in keys})
    if spare:
        warn(f"data set '{name}': not read: {abbreviate(spare)}{_hint(spare[0], keys)}")
    return source


def _hint(spare: str, keys: set[str]) -> str:
    """A hint that an array which is not read may hold client ids."""
    owners = {"client"} if set(WHOLE) <= keys else {"client_train", "client_test"}
    if keys & set(OWNERS) and spare in _names_by_key("", [spare]).values():
        return ""  # client ids of the same examples, under another key
    matches = get_close_matches(spare, owners - keys - {spare}, n=1)
    return f"; did you mean {matches[0]!r} by {spare!r}?" if matches else ""


def _names_by_key(name: str, entries: Iterable[str]) -> dict[str, str]:
    """The keys that have an array, each with the array's name in the file."""
    names: dict[str, str] = {}
    for entry in entries:
        key, owner = entry.lower(), _OWNER.fullmatch(entry.lower())
        if owner and not all(owner.groups()):
            part = (owner[1] or owner[2] or "").strip("_")
            key = f"client_{part}" if part else "client"
        if key in _KEYS:
            if key in names:
                raise array_error(name, key, "be one array", f"is both {names[key]!r} and {entry!r}")
            names[key] = entry
    return names


@contextmanager
def _npz(name: str, path: Path) -> Iterator[dict[str, _Entry]]:
    # Opened here: numpy leaves a file that it cannot read to the garbage collector.
    with regular_file(path).open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # a hostile header makes NumPy raise nearly anything
            # NumPy takes every unknown format for a pickle.
            raise _not_npz(name, "is no array file" if "pickle" in str(error) else _reason(error)) from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise _not_npz(name, "is a single array, as npy:DIR reads them")
        yield {
            key: _Entry(partial(archive.__getitem__, key), partial(_member_shape, archive, key))
            for key in archive.files
        }


def _member_shape(archive: np.lib.npyio.NpzFile, key: str) -> tuple[int, ...]:
    assert archive.zip is not None
    with archive.zip.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        return readers[version](member)[0]


def _npy(path: Path) -> dict[str, _Entry]:
    def entry(file: Path) -> _Entry:
        def load() -> np.ndarray:
            return np.load(regular_file(file), mmap_mode="r", allow_pickle=False)

        return _Entry(load, lambda: load().shape)

    return {file.stem: entry(file) for file in sorted(path.glob("*.npy"))}


def _load(name: str, key: str, load: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return load()
    except Exception as error:
        raise array_error(name, key, "be a plain array", _reason(error)) from None


def _not_npz(name: str, fact: str) -> UserError:
    return UserError(f"data.name={name!r}: must be a readable .npz file; it {fact}")


def _reason(error: BaseException) -> str:
    """The reason of a failure, behind "it"."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if "pickle" in str(error):
        return "holds pickled Python objects"
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return f"is invalid: {error.strerror}"
    return f"is unreadable ({type(error).__name__})"
