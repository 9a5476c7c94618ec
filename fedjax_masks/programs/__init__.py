"""Compiled programs: their text, their costs on an accelerator, and the accelerators' rates."""
