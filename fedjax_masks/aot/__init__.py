"""Compilation for accelerators that are not there, and estimates of speed on them.

XLA's compilers for CUDA and TPU come as packages, and compile for a chip by its description::

    pip install 'fedjax_masks[aot]'

:func:`~fedjax_masks.aot.compilation.compile_for` compiles a simulation. The estimates of speed also
choose the plan of a simulation whose accelerator is there.
"""
