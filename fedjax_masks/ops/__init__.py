"""Numerical building blocks with rules of their own."""

from fedjax_masks.ops.conv import conv2d, conv_general_dilated

__all__ = ["conv2d", "conv_general_dilated"]
