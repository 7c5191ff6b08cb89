"""Append-only JSON lines that survive a crash at any byte: fsynced, checksummed, torn tail cut.

One line is ``{"check":"<16 hex of blake3>","event":<the appended JSON>}``. Only a tail without its
line break is torn: nobody was told that it is kept. Any other damage is an error, never cut.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from cloudshift_lab.core.errors import Corrupt, Exhausted

_HEAD = b'{"check":"'
_MIDDLE = b'","event":'
_TAIL = b"}"
_CHECK_CHARS = 16


class EventLog(Protocol):
    """What a driver needs of a journal; a simulation keeps it in memory."""

    def append(self, event: bytes) -> None:
        """Keep one event durably before returning."""

    def replay(self) -> tuple[bytes, ...]:
        """All events ever appended, in order."""


class Journal:
    """A journal file. One process at a time writes it; the conductor's life lock sees to that.

    Args:
        path: The file; made, with its folder, by the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events, self._good_bytes = _read(path)

    def append(self, event: bytes) -> None:
        """Write and fsync one line.

        Args:
            event: JSON without line breaks.

        Raises:
            Exhausted: The disk does not take it; the journal is as it was before.
        """
        assert b"\n" not in event
        line = _HEAD + _check(event) + _MIDDLE + event + _TAIL + b"\n"
        try:
            self._write(line)
        except OSError as error:
            raise Exhausted(
                f"cannot write {self.path} ({error.strerror}); free disk space, then try again"
            ) from error
        self._good_bytes += len(line)
        self._events.append(event)

    def replay(self) -> tuple[bytes, ...]:
        return tuple(self._events)

    def _write(self, line: bytes) -> None:
        is_new = not self.path.exists()
        if is_new:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self._good_bytes)
            written = 0
            while written < len(line):
                written += os.pwrite(descriptor, line[written:], self._good_bytes + written)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable, not only its bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(event: bytes) -> bytes:
    return blake3(event).hexdigest()[:_CHECK_CHARS].encode()


def _read(path: Path) -> tuple[list[bytes], int]:
    """The whole events and the number of bytes they fill; what follows is a torn tail.

    Raises:
        Corrupt: A whole line is damaged, the last one included: it was acknowledged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    events: list[bytes] = []
    good_bytes = 0
    for number, line in enumerate(data.split(b"\n")[:-1]):
        event = _parse(line)
        if event is None:
            raise Corrupt(
                f"{path} line {number + 1} is damaged; restore the file from a copy, "
                "or move its folder away to forget that run",
                line=number + 1,
            )
        events.append(event)
        good_bytes += len(line) + 1
    return events, good_bytes


def _parse(line: bytes) -> bytes | None:
    start = len(_HEAD) + _CHECK_CHARS + len(_MIDDLE)
    event = line[start : -len(_TAIL)]
    whole = _HEAD + _check(event) + _MIDDLE + event + _TAIL
    return event if line == whole else None
