"""A port on this machine that no other agent on it takes meanwhile."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

_FIRST_PORT, _NUM_PORTS = 15000, 15000


class PortClaim:
    """One port at a time, held until the next one is taken or this process ends.

    That a port is free says nothing of the seconds until a launcher listens there: another agent
    may look in the same moment. So each locks the port's own byte of a file that all agents of
    this user share; the system lets go of it with the process.

    Args:
        address: Where the port must be free.
        random: Numbers in [0, 1).
        folder: Of the file; None: the system's for temporary files.
    """

    def __init__(
        self, address: str, random: Callable[[], float], *, folder: Path | None = None
    ) -> None:
        self._address = address
        self._random = random
        self._path = (folder or Path(tempfile.gettempdir())) / f"cloudshift-ports-{os.getuid()}"
        self._file: int | None = None
        self._port: int | None = None

    def take(self) -> int:
        """Claim another port, outside the range from which the system takes its own.

        A port that the system chose could be given to an outgoing connection between our look and
        the launcher's bind.
        """
        self._file = self._open() if self._file is None else self._file
        former, self._port = self._port, None
        while self._port is None:
            port = _FIRST_PORT + int(self._random() * _NUM_PORTS)
            if port != former and self._claim(port):
                self._port = port
        if former is not None:
            self._unlock(former)
        return self._port

    def _open(self) -> int | None:
        """The shared file; None where there can be none: then only our look is left."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags, 0o600)
        except OSError:
            return None

    def _claim(self, port: int) -> bool:
        if not self._lock(port):
            return False
        with socket.socket() as probe:
            try:
                probe.bind((self._address, port))
            except OSError:
                self._unlock(port)
                return False
        return True

    def _lock(self, port: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except (BlockingIOError, PermissionError):  # both mean that another process has it
            return False
        return True

    def _unlock(self, port: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, port)
