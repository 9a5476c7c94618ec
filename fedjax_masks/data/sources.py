"""Sources of examples: embedded digits, prepared tensorflow-datasets, users' own arrays.

A source has a name: ``digits`` (real images inside scikit-learn, no download), ``npz:PATH``
and ``npy:DIR`` (a user's own arrays), and the name of any image classification data set of
tensorflow-datasets, with its configuration where it has several (``emnist/byclass``).
"""

from pathlib import Path

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.data import files, prepared
from fedjax_masks.data.arrays import AUTO, ArrayOptions
from fedjax_masks.data.examples import Examples, Source, hold_out


def load_source(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    options: ArrayOptions = AUTO,
) -> Source:
    """Loads a data set by name.

    Args:
      name: ``digits``, ``npz:PATH``, ``npy:DIR``, or any image classification data set of
        tensorflow-datasets; :data:`~fedjax_masks.data.catalog.DATASETS` names the usual ones.
      data_dir: The folder of prepared tensorflow-datasets, from which alone they are read. Without it,
        the library's own folder is used, and a missing data set is downloaded.
      cache_dir: The folder of decoded arrays; by default ``$FEDJAX_MASKS_CACHE``, else
        ``~/.cache/fedjax_masks``.
      options: The interpretation of a user's own arrays.

    Raises:
      UserError: There is no such data set, or it cannot be read.
    """
    if is_user_data(name):
        kind, _, path = name.partition(":")
        return (files.read_npz if kind == "npz" else files.read_npy)(Path(path).expanduser(), options)
    for key, value in options._asdict().items():
        if value != getattr(AUTO, key):
            raise UserError(
                f"data.{key}={value}: must be left out with data.name={name!r}; npz: and npy: data have it"
            )
    if name == "digits":
        return digits()
    return prepared.read(name, data_dir=data_dir, cache_dir=cache_dir)


def is_user_data(name: str) -> bool:
    """Whether a name stands for a user's own arrays."""
    return name.startswith(("npz:", "npy:"))


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits: ``uint8[num, 8, 8, 1]``, a fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data.name='digits': must go with scikit-learn; pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    # 17 grey levels, 0 to 16, spread over a byte like every other image here.
    inputs = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = hold_out(Examples(inputs, np.asarray(labels, np.int32)))
    return Source("digits", train, test, 10)
