"""A file of clients' packed states on the host, with the states of clients that have taken part.

Each state is in a slot of the file. The index of the clients' slots is part of the simulation's state.
Writing never changes a slot in the index of a checkpoint: the new state goes to a free slot, and the old slot
becomes free when all checkpoints that refer to it are deleted. A run that is killed at any moment therefore
finds the states of its last checkpoint unchanged.
"""

import os
import tempfile
import zlib
from collections import deque
from pathlib import Path

import numpy as np

_CHECKSUM = 4  # bytes, before every state


class Store:
    """A file of states of one length, with a list of its free slots.

    Args:
      state_bytes: The length of a packed state.
      path: The file, which the first use creates; None for a file that vanishes with the process.
      checkpoints: The number of kept checkpoints of the simulation's state.
    """

    def __init__(self, state_bytes: int, path: Path | None = None, *, checkpoints: int = 1) -> None:
        self.state_bytes = state_bytes
        self._path, self._descriptor = path, -1
        self._length = 0  # in slots
        self._free: list[int] = []
        self._new_slots: set[int] = set()  # slots in the index, and in no checkpoint
        self._old_slots: list[int] = []  # slots in checkpoints, and no longer in the index
        self._generations: deque[list[int]] = deque()  # old slots, per checkpoint
        self._checkpoints = checkpoints

    def read(self, slots: np.ndarray) -> np.ndarray:
        """Reads the states in some slots: ``uint8[len(slots), state_bytes]``.

        Raises:
          OSError: A state is damaged.
        """
        states = np.empty((len(slots), self.state_bytes), np.uint8)
        for state, slot in zip(states, slots.tolist()):
            data = os.pread(self._file(), self._slot_bytes, slot * self._slot_bytes)
            checksum, content = data[:_CHECKSUM], data[_CHECKSUM:]
            if len(content) != self.state_bytes or checksum != _checksum(content):
                raise OSError(f"{self._path or 'the store'}: the state in slot {slot} is damaged")
            state[:] = np.frombuffer(content, np.uint8)
        return states

    def write(self, states: np.ndarray, old_slots: np.ndarray) -> np.ndarray:
        """Writes states to free slots, and releases their old slots.

        Args:
          states: ``uint8[n, state_bytes]``.
          old_slots: ``int[n]``: the slot of each state in the index, or -1.

        Returns:
          ``int32[n]``: the new slots.
        """
        for slot in old_slots[old_slots >= 0].tolist():
            (self._free if slot in self._new_slots else self._old_slots).append(slot)
            self._new_slots.discard(slot)
        slots = [self._free_slot() for _ in states]
        self._new_slots.update(slots)
        for slot, state in zip(slots, states):
            content = state.tobytes()
            _write_all(self._file(), _checksum(content) + content, slot * self._slot_bytes)
        return np.asarray(slots, np.int32)

    def prefetch(self, slots: np.ndarray) -> None:
        """Announces the next slots to read, so that the operating system fetches them in the background."""
        if hasattr(os, "posix_fadvise"):
            for slot in slots.tolist():
                start = slot * self._slot_bytes
                os.posix_fadvise(self._file(), start, self._slot_bytes, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        """Waits until all states are on the disk; called before a checkpoint is complete."""
        os.fsync(self._file())

    def mark(self) -> None:
        """Records that a checkpoint is complete, and that the oldest checkpoint is deleted."""
        self._generations.append(self._old_slots)
        self._old_slots, self._new_slots = [], set()
        while len(self._generations) >= max(self._checkpoints, 1):
            self._free += self._generations.popleft()

    def adopt(self, index: np.ndarray) -> None:
        """Restores the store for a checkpoint's index, ``int32[num_clients]``, with -1 for no state."""
        slots = set(index[index >= 0].tolist())
        self._length = max(os.fstat(self._file()).st_size // self._slot_bytes, 1 + max(slots, default=-1))
        # Older checkpoints may refer to any other slot.
        self._old_slots = sorted(set(range(self._length)) - slots)
        self._free, self._new_slots = [], set()
        self._generations.clear()

    @property
    def file_bytes(self) -> int:
        """The size of the file in bytes."""
        return self._length * self._slot_bytes

    @property
    def _slot_bytes(self) -> int:
        return _CHECKSUM + self.state_bytes

    def _free_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._length += 1
        return self._length - 1

    def _file(self) -> int:
        if self._descriptor < 0:
            if self._path is None:
                # The duplicate keeps the deleted file until the process ends.
                with tempfile.TemporaryFile() as file:
                    self._descriptor = os.dup(file.fileno())
            else:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        return self._descriptor

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _write_all(file: int, content: bytes, position: int) -> None:
    rest = memoryview(content)
    while rest:
        length = os.pwrite(file, rest, position)
        rest, position = rest[length:], position + length
