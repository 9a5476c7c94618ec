"""Image classification data sets of tensorflow-datasets, read without TensorFlow.

Images are decoded once, in batches, and kept as arrays (:mod:`fedjax_masks.data.cache`), so that
later loads neither decode nor import tensorflow-datasets.
"""

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_masks.core.errors import in_a_line as _line
from fedjax_masks.core.errors import unlogged
from fedjax_masks.core.progress import Show, lines, working
from fedjax_masks.core.synonyms import synonym
from fedjax_masks.data.cache import cached
from fedjax_masks.data.catalog import DATASETS
from fedjax_masks.data.examples import Examples, Source, hold_out

_LOGGER = logging.getLogger("fedjax_masks")
_INFO = "dataset_info.json"
_NAME = re.compile(r"[a-z]\w*(/\w[\w.\-]*)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_BATCH = 1024


def read(name: str, *, data_dir: str | Path | None, cache_dir: str | Path | None) -> Source:
    """Reads a prepared data set, or prepares it first where no ``data_dir`` is given.

    Args:
      name: The builder's name, with a configuration where it has several: ``emnist/byclass``.
      data_dir: Where prepared data sets lie; without it, tensorflow-datasets' own folder.
      cache_dir: Where decoded arrays are kept.

    Raises:
      ValueError: If there is no such data set, or it is not one of labelled images of one size.
    """
    folder = _find(name, data_dir)
    # Named by content: the same data set in another folder shares the entry, a new version does not.
    info = hashlib.sha256((folder / _INFO).read_bytes()).hexdigest()[:12]
    entry = f"{name.replace('/', '-')}-{folder.name}-{info}"
    arrays = cached(entry, lambda: _decode(name, folder), cache_dir=cache_dir)
    train = Examples(arrays["train_inputs"], arrays["train_labels"])
    test = Examples(arrays["test_inputs"], arrays["test_labels"])
    return Source(name, train, test, int(arrays["num_classes"]))


def library_folder() -> Path:
    """Where tensorflow-datasets itself keeps what it has prepared."""
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
        raise ValueError(f"data set '{name}': data_dir '{root}' is not a folder")
    there = sorted({_label(path.parent, root) for path in root.glob(f"**/{_INFO}")})
    found = f"prepared there: {', '.join(there)}" if there else "nothing is prepared there"
    deeper = [label.removesuffix(name) for label in there if label.endswith(f"/{name}")]
    meant = f"; did you mean data_dir '{root / deeper[0]}'?" if deeper else _nearest(name, there)
    raise ValueError(f"data set '{name}': not in data_dir '{root}'; {found}{meant}")


def _newest(folder: Path) -> Path | None:
    versions = [
        path for path in folder.glob("*.*.*") if _VERSION.fullmatch(path.name) and (path / _INFO).is_file()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _label(version: Path, root: Path) -> str:
    return version.parent.relative_to(root).as_posix()


def _nearest(name: str, names: Sequence[str]) -> str:
    near = [f"npz:{name}"] if name.endswith(".npz") else difflib.get_close_matches(name.lower(), names, n=3)
    alike = synonym(name, names)
    near = near if alike is None else [alike]
    return f"; did you mean {' or '.join(repr(other) for other in dict.fromkeys(near))}?" if near else ""


def _tfds(name: str) -> Any:
    try:
        import array_record  # noqa: F401  # tensorflow-datasets misses it late, and in many words
    except ImportError:
        raise ValueError(
            f"data set '{name}' needs array_record: pip install array_record (Linux, macOS); "
            "accepted without it: digits, npz:PATH and npy:DIR"
        ) from None
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"data set '{name}' needs tensorflow-datasets ({_line(error)}): pip install tensorflow-datasets"
        ) from None
    return tfds


def _prepare(name: str) -> Path:
    """Downloads and prepares a data set in tensorflow-datasets' own folder."""
    tfds = _tfds(name)
    builders = tfds.list_builders(with_community_datasets=False)
    if not _NAME.fullmatch(name) or name.partition("/")[0] not in builders:
        names = ", ".join(DATASETS)
        raise ValueError(
            f"data set '{name}': unknown{_nearest(name, [*DATASETS, *builders])}; accepted: {names}, "
            "or another of tensorflow-datasets"
        )
    where = library_folder()
    _LOGGER.warning(
        "data set '%s': not in %s, so it is downloaded; data_dir names another folder", name, where
    )
    try:
        with unlogged("urllib3.connectionpool"), working(f"data set '{name}': downloading and preparing"):
            # The one format that is read without TensorFlow.
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        return Path(builder.data_dir)
    except Exception as error:  # downloads, archives and builders fail in ways of their own
        raise ValueError(f"data set '{name}': could not be downloaded and prepared: {_line(error)}") from None


def _decode(name: str, folder: Path) -> dict[str, np.ndarray]:
    tfds = _tfds(name)
    try:
        builder = tfds.builder_from_directory(folder)
        image, label, classes = _keys(tfds, name, builder.info.features)
        splits = builder.info.splits
        held = next((split for split in ("test", "validation") if split in splits), None)
        train = _read_split(name, builder.as_data_source("train"), image, label)
        if held is None:
            train, test = hold_out(train)
        else:
            test = _read_split(name, builder.as_data_source(held), image, label)
    except ValueError:
        raise
    except Exception as error:  # damaged records and foreign formats fail in ways of their own
        raise ValueError(f"data set '{name}': '{folder}' cannot be read: {_line(error)}") from None
    return {
        "train_inputs": train.inputs,
        "train_labels": train.labels,
        "test_inputs": test.inputs,
        "test_labels": test.labels,
        "num_classes": np.asarray(classes),
    }


def _keys(tfds: Any, name: str, features: Any) -> tuple[str, str, int]:
    """The keys of the only image and the only label, and the number of classes."""
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or ("label" not in labels and len(labels) != 1):
        raise ValueError(
            f"data set '{name}': has {len(images)} images and {len(labels)} labels per example; "
            "one of each is accepted"
        )
    label = "label" if "label" in labels else labels[0]
    return images[0], label, features[label].num_classes


def _read_split(name: str, source: Any, image: str, label: str) -> Examples:
    with lines(f"data set '{name}': decoding", total=len(source), unit="images") as show:
        return _decoded(name, source, image, label, show)


def _decoded(name: str, source: Any, image: str, label: str, show: Show) -> Examples:
    num = len(source)
    inputs, labels = None, np.empty(num, np.int32)
    for start in range(0, num, _BATCH):
        rows = range(start, min(start + _BATCH, num))
        batch = source.__getitems__(list(rows))
        if inputs is None:
            inputs = np.empty((num, *batch[0][image].shape), batch[0][image].dtype)
        shapes = {example[image].shape for example in batch} - {inputs.shape[1:]}
        if shapes:
            raise ValueError(
                f"data set '{name}': images of several sizes, {inputs.shape[1:]} and {shapes.pop()}; "
                "one size is accepted"
            )
        inputs[rows.start : rows.stop] = [example[image] for example in batch]
        labels[rows.start : rows.stop] = [example[label] for example in batch]
        show(rows.stop)
    if inputs is None or inputs.dtype != np.uint8 or labels.min() < 0:
        raise ValueError(f"data set '{name}': labelled uint8 images are accepted")
    return Examples(inputs, labels)
