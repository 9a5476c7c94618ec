"""Clients' rows on the host, in a file: only those of clients that have taken part.

A row lies in a slot of the file; who has which slot is an index that belongs to the simulation's state.
Writing never touches a slot that a checkpoint knows: the row goes to a free one, and the old one is
free again when the checkpoints that know it are gone. So a run that is killed at any moment finds the
rows of its last checkpoint as they were.
"""

import os
import tempfile
import zlib
from collections import deque
from pathlib import Path

import numpy as np

_CHECKSUM = 4  # bytes, before every row


class Store:
    """A file of rows of one length, and what is free in it.

    Args:
      row_bytes: The length of a row.
      path: The file; made at the first use. None: one that vanishes with the process.
      checkpoints: How many checkpoints are kept of the state that the index belongs to.
    """

    def __init__(self, row_bytes: int, path: Path | None = None, *, checkpoints: int = 1) -> None:
        self.row_bytes = row_bytes
        self._path, self._open_file = path, -1
        self._length = 0  # in slots
        self._free: list[int] = []
        self._unmarked: set[int] = set()  # slots that no checkpoint knows
        self._retired: list[int] = []  # slots that checkpoints know, and the index no more
        self._generations: deque[list[int]] = deque()
        self._checkpoints = checkpoints

    def read(self, slots: np.ndarray) -> np.ndarray:
        """The rows in some slots: ``uint8[len(slots), row_bytes]``.

        Raises:
          OSError: A row is not what was written.
        """
        rows = np.empty((len(slots), self.row_bytes), np.uint8)
        for row, slot in zip(rows, slots.tolist()):
            found = os.pread(self._file(), self._slot_bytes, slot * self._slot_bytes)
            checksum, content = found[:_CHECKSUM], found[_CHECKSUM:]
            if len(content) != self.row_bytes or checksum != _checksum(content):
                raise OSError(f"{self._path or 'the store'}: the row in slot {slot} is damaged")
            row[:] = np.frombuffer(content, np.uint8)
        return rows

    def write(self, rows: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Writes rows, and gives up the ones that they replace.

        Args:
          rows: ``uint8[n, row_bytes]``.
          before: ``int[n]``: each row's slot until now; -1 where there is none.

        Returns:
          ``int32[n]``: their slots from now on.
        """
        for slot in before[before >= 0].tolist():
            (self._free if slot in self._unmarked else self._retired).append(slot)
            self._unmarked.discard(slot)
        slots = [self._take() for _ in rows]
        self._unmarked.update(slots)
        for slot, row in zip(slots, rows):
            content = row.tobytes()
            _write_all(self._file(), _checksum(content) + content, slot * self._slot_bytes)
        return np.asarray(slots, np.int32)

    def announce(self, slots: np.ndarray) -> None:
        """Says which slots will be read next, so that the system fetches them meanwhile."""
        if hasattr(os, "posix_fadvise"):
            for slot in slots.tolist():
                start = slot * self._slot_bytes
                os.posix_fadvise(self._file(), start, self._slot_bytes, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        """Returns once all rows are on the disk; called before a checkpoint is complete."""
        os.fsync(self._file())

    def mark(self) -> None:
        """Says that a checkpoint is complete, and that the oldest one is gone."""
        self._generations.append(self._retired)
        self._retired, self._unmarked = [], set()
        while len(self._generations) >= max(self._checkpoints, 1):
            self._free += self._generations.popleft()

    def adopt(self, index: np.ndarray) -> None:
        """Goes on from a checkpoint's index, ``int32[num_clients]``; -1 where there is no row."""
        used = set(index[index >= 0].tolist())
        self._length = max(os.fstat(self._file()).st_size // self._slot_bytes, 1 + max(used, default=-1))
        # Older checkpoints may know any of the others.
        self._retired = sorted(set(range(self._length)) - used)
        self._free, self._unmarked = [], set()
        self._generations.clear()

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self._length * self._slot_bytes

    @property
    def _slot_bytes(self) -> int:
        return _CHECKSUM + self.row_bytes

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._length += 1
        return self._length - 1

    def _file(self) -> int:
        if self._open_file < 0:
            if self._path is None:
                with tempfile.TemporaryFile() as unnamed:
                    self._open_file = os.dup(unnamed.fileno())
            else:
                self._open_file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        return self._open_file

    def __del__(self) -> None:
        if self._open_file >= 0:
            os.close(self._open_file)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _write_all(file: int, content: bytes, position: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, position)
        left, position = left[written:], position + written
