"""Named choices that configurations share with modules that import jax."""

from typing import Literal

AttackKind = Literal["nan", "scale", "sign"]
"""The attack of hostile clients on their uploads; see :func:`fedjax_masks.transforms.attacks.with_attack`."""

Precision = Literal["float32", "tensorfloat32", "bfloat16"]
"""The precision of matrix products; see ``jax.default_matmul_precision``."""

DataPlace = Literal["auto", "device", "host"]
"""The place of training data; see :class:`fedjax_masks.simulation.Storage`."""

StatePlace = Literal["auto", "device", "mesh", "host"]
"""The place of clients' states; see :class:`fedjax_masks.simulation.Storage`."""

Augmentation = Literal["none", "crop_flip"]
"""Augmentation of minibatches."""

FractalStyle = Literal["gray", "color", "background"]
"""Colors of fractals in images of several channels."""
