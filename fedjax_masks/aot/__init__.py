"""Compilation for accelerators that are not there.

XLA's compilers for CUDA and TPU come as packages, and compile for a chip by its description::

    pip install 'fedjax_masks[aot]'
"""

from fedjax_masks.aot.compilation import Compilation as Compilation
from fedjax_masks.aot.compilation import compile_for as compile_for
