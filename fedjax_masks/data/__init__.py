"""Data sets, their division among clients, and augmentation (imported at its first use)."""

from typing import TYPE_CHECKING

from fedjax_masks.core.lazy import exports
from fedjax_masks.data.catalog import DATASETS
from fedjax_masks.data.partitions import PARTITIONS
from fedjax_masks.data.skew import MODIFIERS
from fedjax_masks.data.synthetic import synthetic_task
from fedjax_masks.data.tasks import index_of, label_histogram, load_task, rows_of, task_from_arrays

if TYPE_CHECKING:
    from fedjax_masks.data.augment import crop_flip

__all__ = [
    "DATASETS",
    "MODIFIERS",
    "PARTITIONS",
    "crop_flip",
    "index_of",
    "label_histogram",
    "load_task",
    "rows_of",
    "synthetic_task",
    "task_from_arrays",
]

__getattr__, __dir__ = exports(__name__, {"augment": ("crop_flip",)})
