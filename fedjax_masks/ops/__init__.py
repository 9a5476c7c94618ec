"""Operations with gradient rules of their own, fast inside loops and under ``vmap``."""

from fedjax_masks.ops.conv import conv2d, conv_general_dilated
from fedjax_masks.ops.pool import max_pool

__all__ = ["conv2d", "conv_general_dilated", "max_pool"]
