"""Frames: the complete records in a log file of a tracking backend, whose writer may have been killed."""

from collections.abc import Iterator
from pathlib import Path


def event_frames(path: Path) -> Iterator[bytes]:
    """Complete events in a file of TensorBoard: a length of 8 bytes, its checksum, data, their checksum."""
    content, start = path.read_bytes(), 0
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 8], "little")
        if end + 4 <= len(content):
            yield content[start + 12 : end]
        start = end + 4


def leveldb_frames(path: Path) -> Iterator[bytes]:
    """Complete records of a log in LevelDB's format, after W&B's header of 7 bytes.

    Blocks of 32 KiB hold pieces: a checksum of 4 bytes, a length of 2, and the kind: 1 is a complete record,
    2 to 4 are the first, a middle and the last piece of a record. Fewer than 7 bytes at the end of a block
    are unused.
    """
    content, start, record = path.read_bytes(), 7, b""
    while start + 7 <= len(content):
        rest = 32768 - start % 32768
        if rest < 7:
            start += rest
            continue
        kind, end = content[start + 6], start + 7 + int.from_bytes(content[start + 4 : start + 6], "little")
        if kind not in (1, 2, 3, 4) or end > len(content):
            return
        record, start = record + content[start + 7 : end], end
        if kind in (1, 4):
            yield record
            record = b""
