"""Writes to disk that survive the sudden end of the process or of the machine."""

import os
from pathlib import Path


def append(path: Path, text: str) -> None:
    """Appends text to a file, and returns once the text is on disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content; a reader sees either the old content or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_directory(directory: Path) -> None:
    """Writes a directory's entries to disk, where the system offers that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
