"""A user's own arrays in ``.npz`` and ``.npy`` files.

Keys: ``x_train``, ``y_train``, ``x_test``, ``y_test`` and, where examples have natural clients,
``client_train`` and ``client_test``; or ``x``, ``y`` and ``client``, of which a fifth is held
out for testing, always the same. Capitals do not matter, and ``client_ids``, ``user``, ``user_id`` and the
like stand for ``client``. A logged line names arrays that are not read. Pickled objects are never loaded.
"""

import errno
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.core.errors import regular_file
from fedjax_masks.data.arrays import (
    AUTO,
    OWNERS,
    SPLIT,
    WHOLE,
    ArrayOptions,
    check_keys,
    checked,
    few,
    refused,
    used,
)
from fedjax_masks.data.examples import Source

_KEYS = (*SPLIT, *WHOLE, *OWNERS)
_OWNER = re.compile(r"(train_|test_)?(?:client|user)s?(?:_?ids?)?(_train|_test)?", re.ASCII)
_LOGGER = logging.getLogger("fedjax_masks")


class _Stored(NamedTuple):
    """An array in a file."""

    load: Callable[[], np.ndarray]
    shape: Callable[[], tuple[int, ...]]


def read_npz(path: Path, options: ArrayOptions = AUTO) -> Source:
    """Reads ``.npz`` arrays; see the module's description for the keys.

    Raises:
      ValueError: If the file cannot be read or an array is not as described.
    """
    name = f"npz:{path}"
    try:
        with _npz(name, path) as stored:
            return _read(name, stored, options)
    except OSError as error:
        raise ValueError(f"data set '{name}': {_reason(error)}; a .npz file is accepted") from None


def read_npy(path: Path, options: ArrayOptions = AUTO) -> Source:
    """Memory-maps the arrays of a folder, ``x_train.npy`` and so on.

    Raises:
      ValueError: If a file cannot be read or an array is not as described.
    """
    name = f"npy:{path}"
    if not path.is_dir():
        raise ValueError(
            f"data set '{name}': no such folder; a folder with x_train.npy and so on is accepted"
        )
    return _read(name, _npy(path), options)


def input_shape(name: str) -> tuple[int, ...] | None:
    """The shape of one input, read from a header; None where there is none to read.

    Args:
      name: ``npz:PATH`` or ``npy:DIR``.
    """
    found = _peek(name, ("x_train", "x"), lambda stored: stored.shape())
    return None if found is None else tuple(found[1:])


def count_clients(name: str) -> int | None:
    """The number of natural clients with training examples; None where there are none to read.

    Args:
      name: ``npz:PATH`` or ``npy:DIR``.
    """
    return _peek(name, ("client_train", "client"), lambda stored: len(np.unique(stored.load())))


def _peek(name: str, keys: Sequence[str], look: Callable[[_Stored], Any]) -> Any:
    """A look at the first of some arrays that is there; whoever reads the data says what is wrong."""
    kind, _, path = name.partition(":")
    folder = Path(path).expanduser()
    try:
        with _npz(name, folder) if kind == "npz" else nullcontext(_npy(folder)) as stored:
            names = _by_key(name, stored)
            return look(stored[next(names[key] for key in keys if key in names)])
    except Exception:  # a hostile header makes NumPy raise nearly anything
        return None


def _read(name: str, stored: Mapping[str, _Stored], options: ArrayOptions) -> Source:
    names = _by_key(name, stored)
    check_keys(name, names, there=stored)
    keys = used(names)
    arrays = {key: _load(name, names[key], stored[names[key]].load) for key in names if key in keys}
    source = checked(name, arrays, options)
    spare = sorted(set(stored) - {names[key] for key in keys})
    if spare:
        _LOGGER.warning("data set '%s': not read: %s%s", name, few(spare), _meant(spare[0], keys))
    return source


def _meant(spare: str, keys: set[str]) -> str:
    """A hint at the owners that an array which is not read may hold."""
    wanted = {"client"} if set(WHOLE) <= keys else {"client_train", "client_test"}
    if keys & set(OWNERS) and spare in _by_key("", [spare]).values():
        return ""  # of the same owners, under another key
    near = get_close_matches(spare, wanted - keys - {spare}, n=1)
    return f"; did you mean {near[0]!r} by {spare!r}?" if near else ""


def _by_key(name: str, stored: Iterable[str]) -> dict[str, str]:
    """Keys that are accepted, each with its name in the file."""
    found: dict[str, str] = {}
    for own in stored:
        key, owner = own.lower(), _OWNER.fullmatch(own.lower())
        if owner and not all(owner.groups()):
            part = (owner[1] or owner[2] or "").strip("_")
            key = f"client_{part}" if part else "client"
        if key in _KEYS:
            if key in found:
                raise refused(name, key, f"both {found[key]!r} and {own!r}", "one of them")
            found[key] = own
    return found


@contextmanager
def _npz(name: str, path: Path) -> Iterator[dict[str, _Stored]]:
    # Opened here: numpy leaves a file that it cannot read to the garbage collector.
    with regular_file(path).open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # a hostile header makes NumPy raise nearly anything
            # NumPy takes whatever it does not know for a pickle.
            reason = "it is no array file" if "pickle" in str(error) else _reason(error)
            raise ValueError(f"data set '{name}': {reason}; a .npz file is accepted") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(
                f"data set '{name}': this is a single array; a .npz file is accepted (or npy:DIR)"
            )
        yield {
            key: _Stored(partial(archive.__getitem__, key), partial(_member_shape, archive, key))
            for key in archive.files
        }


def _member_shape(archive: np.lib.npyio.NpzFile, key: str) -> tuple[int, ...]:
    assert archive.zip is not None
    with archive.zip.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        return readers[version](member)[0]


def _npy(path: Path) -> dict[str, _Stored]:
    def stored(file: Path) -> _Stored:
        def load() -> np.ndarray:
            return np.load(regular_file(file), mmap_mode="r", allow_pickle=False)

        return _Stored(load, lambda: load().shape)

    return {file.stem: stored(file) for file in sorted(path.glob("*.npy"))}


def _load(name: str, key: str, load: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return load()
    except Exception as error:
        raise refused(name, key, _reason(error), "plain numeric arrays") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if "pickle" in str(error):
        return "it holds pickled Python objects"
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return f"it {error.strerror}"
    return f"unreadable ({type(error).__name__})"
