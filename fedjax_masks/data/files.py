"""A user's own arrays, from ``.npz`` and ``.npy`` files, checked before use.

Keys: ``x_train``, ``y_train``, ``x_test``, ``y_test`` and, where examples have natural clients,
``client_train`` and ``client_test``; or ``x``, ``y`` and ``client``, of which a fifth is held
out for testing, always the same. Pickled objects are never loaded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedjax_masks.data.examples import Examples, Source, hold_out

_SPLIT = ("x_train", "y_train", "x_test", "y_test")
_WHOLE = ("x", "y")
_IDS = ("client_train", "client_test", "client")
_CHUNK = 4096


def read_npz(path: Path) -> Source:
    """Reads ``.npz`` arrays; see the module's description for the keys.

    Raises:
      ValueError: If the file cannot be read or an array is not as described.
    """
    name = f"npz:{path}"
    try:
        # Opened here: numpy leaves a file that it cannot read to the garbage collector.
        with path.open("rb") as file:
            return checked(name, _members(name, file))
    except OSError as error:
        raise ValueError(f"data set '{name}': {_reason(error)}; a .npz file is accepted") from None


def read_npy(path: Path) -> Source:
    """Memory-maps the arrays of a folder, ``x_train.npy`` and so on.

    Raises:
      ValueError: If a file cannot be read or an array is not as described.
    """
    name = f"npy:{path}"
    if not path.is_dir():
        raise ValueError(
            f"data set '{name}': no such folder; a folder with x_train.npy and so on is accepted"
        )
    paths = {key: path / f"{key}.npy" for key in (*_SPLIT, *_WHOLE, *_IDS)}
    return checked(
        name,
        {
            key: _read(name, key, lambda file=file: np.load(file, mmap_mode="r", allow_pickle=False))
            for key, file in paths.items()
            if file.exists()
        },
    )


def checked(name: str, arrays: Mapping[str, np.ndarray]) -> Source:
    """Checks and normalises arrays under the keys described above.

    Raises:
      ValueError: If a key is missing, or an array has a wrong type, shape or value.
    """
    whole = all(key in arrays for key in _WHOLE) and not any(key in arrays for key in _SPLIT)
    required = _WHOLE if whole else _SPLIT
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(
            f"data set '{name}': {', '.join(missing)} missing; "
            "accepted: x_train, y_train, x_test and y_test, or x and y"
        )
    if whole:
        everything = _examples(name, arrays, "x", "y", "client")
        train, test = hold_out(everything)
        classes = _num_classes(name, "y", everything.labels)
    else:
        train = _examples(name, arrays, "x_train", "y_train", "client_train")
        test = _examples(name, arrays, "x_test", "y_test", "client_test")
        classes = _num_classes(name, "y_train", train.labels)
        _check_agree(name, train, test, classes)
    if not len(test.labels):
        raise _refused(name, "y", "one example per class", "two or more examples of a class")
    return Source(name, train, test, classes)


def _members(name: str, file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        archive = np.load(file, allow_pickle=False)
    except Exception as error:  # a hostile header makes NumPy raise nearly anything
        # NumPy takes whatever it does not know for a pickle.
        reason = "it is no array file" if "pickle" in str(error) else _reason(error)
        raise ValueError(f"data set '{name}': {reason}; a .npz file is accepted") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"data set '{name}': this is a single array; a .npz file is accepted (or npy:DIR)")
    keys = [key for key in (*_SPLIT, *_WHOLE, *_IDS) if key in archive.files]
    return {key: _read(name, key, lambda key=key: archive[key]) for key in keys}


def _read(name: str, key: str, load: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return load()
    except Exception as error:
        raise _refused(name, key, _reason(error), "plain numeric arrays") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if "pickle" in str(error):
        return "it holds pickled Python objects"
    return f"unreadable ({type(error).__name__})"


def _refused(name: str, key: str, found: str, accepted: str) -> ValueError:
    return ValueError(f"data set '{name}': {key}: {found}; accepted: {accepted}")


def _examples(name: str, arrays: Mapping[str, np.ndarray], x: str, y: str, ids: str) -> Examples:
    inputs, labels = _inputs(name, x, arrays[x]), _labels(name, y, arrays[y])
    clients = np.asarray(arrays[ids]) if ids in arrays else None
    if len(inputs) != len(labels):
        raise _refused(name, y, f"{len(labels)} labels for {len(inputs)} examples in {x}", "one per example")
    if clients is not None and (clients.shape != labels.shape or clients.dtype.kind not in "iuUS"):
        found = f"{clients.dtype} {list(clients.shape)}"
        raise _refused(name, ids, found, f"integers or strings [{len(labels)}], one per example")
    return Examples(inputs, labels, clients)


def _inputs(name: str, key: str, array: np.ndarray) -> np.ndarray:
    array = np.asanyarray(array)
    found = f"{array.dtype} {list(array.shape)}"
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise _refused(
            name, key, found, "[num, features], [num, height, width] or [num, height, width, channels]"
        )
    if array.dtype.kind not in "iuf":
        raise _refused(name, key, found, "uint8, integers from 0 to 255, or floats")
    if array.dtype.kind == "f":
        array = _finite(name, key, array)
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise _refused(name, key, f"integers from {array.min()} to {array.max()}", "0 to 255, or floats")
        array = array.astype(np.uint8)
    return array[..., None] if array.ndim == 3 else array


def _finite(name: str, key: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold shows up as infinite below
        array = array.astype(np.float32, copy=False)
    # In chunks, so that a memory-mapped array is never held as a whole.
    for start in range(0, len(array), _CHUNK):
        if not np.isfinite(array[start : start + _CHUNK]).all():
            raise _refused(name, key, "values that are NaN or infinite in float32", "finite numbers")
    return array


def _labels(name: str, key: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise _refused(name, key, f"{array.dtype} {list(array.shape)}", "integers [num]")
    if len(array) and array.min() < 0:
        raise _refused(name, key, f"label {array.min()}", "0 and up")
    if len(array) and array.max() >= 2**31:
        raise _refused(name, key, f"label {array.max()}", "0 to num_classes - 1")
    return array.astype(np.int32)


def _num_classes(name: str, key: str, labels: np.ndarray) -> int:
    """One more than the largest label, which must be plausible: classes have examples."""
    classes = int(labels.max()) + 1
    if classes > len(labels):
        raise _refused(name, key, f"label {classes - 1} among {len(labels)} examples", "0 to num_classes - 1")
    return classes


def _check_agree(name: str, train: Examples, test: Examples, classes: int) -> None:
    if train.inputs.shape[1:] != test.inputs.shape[1:] or train.inputs.dtype != test.inputs.dtype:
        found = f"{test.inputs.dtype} examples of {list(test.inputs.shape[1:])}"
        raise _refused(
            name, "x_test", found, f"like x_train: {train.inputs.dtype} {list(train.inputs.shape[1:])}"
        )
    if test.labels.max() >= classes:
        raise _refused(name, "y_test", f"label {test.labels.max()}", f"0 to {classes - 1}, as in y_train")
