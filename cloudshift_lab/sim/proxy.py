"""A network between a client and a server that loses, damages or holds back answers on command."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal

Fault = Literal["lose", "busy", "stall", "damage"]
"""What happens to one answer, after the server did what was asked: it is lost with its connection,
replaced by a 503, never delivered, or its last byte is changed."""

_HOST = "127.0.0.1"
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CHUNK_BYTES = 1 << 16


class FaultyProxy:
    """Forwards TCP connections to ``127.0.0.1:upstream_port``; ``faults`` hit the next answers.

    Use as a context manager; ``port`` is where clients connect.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._faults: list[Fault] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server((_HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.num_faults = 0

    def inject(self, *faults: Fault) -> None:
        """Queue faults; each hits one answer, in this order."""
        with self._lock:
            self._faults.extend(faults)

    def calm(self) -> None:
        """Let the faults that were not used be forgotten."""
        with self._lock:
            self._faults.clear()

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            _shut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((_HOST, self._upstream_port))
            with self._lock:
                self._sockets += [client, server]
            for pump in (self._ask, self._answer):
                threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                server.sendall(data)
        _shut(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                fault = self._next_fault(data)
                if fault == "stall":
                    return
                if fault in ("lose", "busy"):
                    client.sendall(_BUSY if fault == "busy" else b"")
                    break
                client.sendall(_damaged(data) if fault == "damage" else data)
        _shut(client)
        _shut(server)

    def _next_fault(self, data: bytes) -> Fault | None:
        """The fault for an answer that begins here; none for the rest of one or for a 100."""
        with self._lock:
            if not self._faults or not data.startswith(b"HTTP/1.1 ") or data[9:12] == b"100":
                return None
            self.num_faults += 1
            return self._faults.pop(0)


def _damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
