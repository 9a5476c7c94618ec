"""Image classification data sets of tensorflow-datasets, read without TensorFlow.

Images are decoded once, in batches, and kept as arrays (:mod:`fedjax_masks.data.cache`), so that
later loads neither decode nor import tensorflow-datasets.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fedjax_masks.core.errors import UserError, one_line, silence_logger
from fedjax_masks.core.messages import warn
from fedjax_masks.core.progress import Show, activity, lines
from fedjax_masks.core.synonyms import synonym
from fedjax_masks.data.cache import load_or_build
from fedjax_masks.data.catalog import DATASETS
from fedjax_masks.data.examples import Examples, Source, hold_out

_INFO = "dataset_info.json"
_NAME = re.compile(r"[a-z]\w*(/\w[\w.\-]*)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_BATCH = 1024


class _Split(Protocol):
    """A split of a prepared data set, with random access."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int], /) -> Sequence[Mapping[str, np.ndarray | np.generic]]: ...


def read(name: str, *, data_dir: str | Path | None, cache_dir: str | Path | None) -> Source:
    """Reads a prepared data set; without a ``data_dir``, downloads and prepares it first where needed.

    Args:
      name: The builder's name, with a configuration where it has several: ``emnist/byclass``.
      data_dir: The folder of prepared data sets; by default that of tensorflow-datasets.
      cache_dir: The folder of decoded arrays.

    Raises:
      UserError: There is no such data set, or it is not one of labelled images of one size.
    """
    folder = _find(name, data_dir)
    # Named by content: the same data set in another folder shares the entry, a new version does not.
    info = hashlib.sha256((folder / _INFO).read_bytes()).hexdigest()[:12]
    entry = f"{name.replace('/', '-')}-{folder.name}-{info}"
    arrays = load_or_build(entry, lambda: _decode(name, folder), cache_dir=cache_dir)
    train = Examples(arrays["train_inputs"], arrays["train_labels"])
    test = Examples(arrays["test_inputs"], arrays["test_labels"])
    return Source(name, train, test, int(arrays["num_classes"]))


def library_folder() -> Path:
    """The folder in which tensorflow-datasets itself keeps prepared data sets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _find(name: str, data_dir: str | Path | None) -> Path:
    """The folder of the newest prepared version."""
    root = Path(data_dir).expanduser() if data_dir else library_folder()
    folder = _newest(root / name) if _NAME.fullmatch(name) else None
    if folder is not None:
        return folder
    if data_dir is None:
        return _prepare(name)
    if not root.is_dir():
        raise UserError(f"data_dir={str(root)!r}: must be a folder of prepared data sets")
    labels = sorted({_label(path.parent, root) for path in root.glob(f"**/{_INFO}")})
    content = f"prepared in it: {', '.join(labels)}" if labels else "nothing is prepared in it"
    deeper = [label.removesuffix(name) for label in labels if label.endswith(f"/{name}")]
    hint = f"; did you mean data_dir={str(root / deeper[0])!r}?" if deeper else _nearest(name, labels)
    raise UserError(f"data.name={name!r}: must be prepared in data_dir={str(root)!r}; {content}{hint}")


def _newest(folder: Path) -> Path | None:
    versions = [
        path for path in folder.glob("*.*.*") if _VERSION.fullmatch(path.name) and (path / _INFO).is_file()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _label(version: Path, root: Path) -> str:
    """The name of a data set by the folder of one of its versions."""
    return version.parent.relative_to(root).as_posix()


def _nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the names that are nearest."""
    if (match := synonym(name, names)) is not None:
        matches = [match]
    elif name.endswith(".npz"):
        matches = [f"npz:{name}"]
    else:
        matches = difflib.get_close_matches(name.lower(), names, n=3)
    return f"; did you mean {' or '.join(map(repr, dict.fromkeys(matches)))}?" if matches else ""


def _tfds(name: str) -> ModuleType:
    """The module ``tensorflow_datasets``, which is not typed."""
    try:
        import array_record  # noqa: F401  # tensorflow-datasets fails late without it, in many words
    except ImportError:
        raise UserError(
            f"data.name={name!r}: must go with array_record: pip install array_record (Linux, macOS); "
            "digits, npz:PATH and npy:DIR do without it"
        ) from None
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"data.name={name!r}: must go with tensorflow-datasets: pip install tensorflow-datasets "
            f"({one_line(error)})"
        ) from None
    return tfds


def _prepare(name: str) -> Path:
    """Downloads and prepares a data set in tensorflow-datasets' own folder."""
    tfds = _tfds(name)
    builders = tfds.list_builders(with_community_datasets=False)
    if not _NAME.fullmatch(name) or name.partition("/")[0] not in builders:
        raise UserError(
            f"data.name={name!r}: must be one of {', '.join(DATASETS)}, or another one of "
            f"tensorflow-datasets{_nearest(name, [*DATASETS, *builders])}"
        )
    folder = library_folder()
    warn(f"data set '{name}': not in {folder}, so it is downloaded; data_dir names another folder")
    try:
        with (
            silence_logger("urllib3.connectionpool"),
            activity(f"data set '{name}': downloading and preparing"),
        ):
            # The one format that is read without TensorFlow.
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        return Path(builder.data_dir)
    except Exception as error:  # downloads, archives and builders fail in ways of their own
        reason = one_line(error)
        raise UserError(f"data.name={name!r}: must be downloaded first, which failed: {reason}") from None


def _decode(name: str, folder: Path) -> dict[str, np.ndarray]:
    tfds = _tfds(name)
    try:
        builder = tfds.builder_from_directory(folder)
        image, label, classes = _keys(tfds, name, builder.info.features)
        splits = builder.info.splits
        test_split = next((split for split in ("test", "validation") if split in splits), None)
        train = _read_split(name, builder.as_data_source("train"), image, label)
        if test_split is None:
            train, test = hold_out(train)
        else:
            test = _read_split(name, builder.as_data_source(test_split), image, label)
    except UserError:
        raise
    except Exception as error:  # damaged records and foreign formats fail in ways of their own
        reason = one_line(error)
        raise UserError(f"data.name={name!r}: must be readable in {str(folder)!r}: {reason}") from None
    return {
        "train_inputs": train.inputs,
        "train_labels": train.labels,
        "test_inputs": test.inputs,
        "test_labels": test.labels,
        "num_classes": np.asarray(classes),
    }


def _keys(tfds: ModuleType, name: str, features: Any) -> tuple[str, str, int]:
    """The keys of the only image and the only label, and the number of classes."""
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or ("label" not in labels and len(labels) != 1):
        raise UserError(
            f"data.name={name!r}: must have one image and one label per example; it has {len(images)} and "
            f"{len(labels)}"
        )
    label = "label" if "label" in labels else labels[0]
    return images[0], label, features[label].num_classes


def _read_split(name: str, source: _Split, image: str, label: str) -> Examples:
    with lines(f"data set '{name}': decoding", total=len(source), unit="images") as show:
        return _decoded(name, source, image, label, show)


def _decoded(name: str, source: _Split, image: str, label: str, show: Show) -> Examples:
    num = len(source)
    inputs, labels = None, np.empty(num, np.int32)
    for start in range(0, num, _BATCH):
        rows = range(start, min(start + _BATCH, num))
        batch = source.__getitems__(list(rows))
        if inputs is None:
            inputs = np.empty((num, *batch[0][image].shape), batch[0][image].dtype)
        shapes = {example[image].shape for example in batch} - {inputs.shape[1:]}
        if shapes:
            raise UserError(
                f"data.name={name!r}: must have images of one size; it has {inputs.shape[1:]} and "
                f"{shapes.pop()}"
            )
        inputs[rows.start : rows.stop] = [example[image] for example in batch]
        labels[rows.start : rows.stop] = [example[label] for example in batch]
        show(rows.stop)
    if inputs is None or inputs.dtype != np.uint8 or labels.min() < 0:
        raise UserError(f"data.name={name!r}: must have labelled uint8 images")
    return Examples(inputs, labels)
