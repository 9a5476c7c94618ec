"""Data sets, their division among clients, and augmentation."""

from fedjax_masks.data.augment import crop_flip
from fedjax_masks.data.catalog import DATASETS
from fedjax_masks.data.partitions import PARTITIONS
from fedjax_masks.data.skew import MODIFIERS
from fedjax_masks.data.synthetic import synthetic_task
from fedjax_masks.data.tasks import index_of, label_histogram, load_task, rows_of, task_from_arrays

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
