"""Step reports from the ranks' datagrams to the conductor, or to the bucket while it is away."""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import ROWS_SOCKET, StepReport
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.spool import Sender

FLUSH_EVERY_S = 0.5
POST_TIMEOUT_S = 5.0
_WAKE_S = 0.2
_MAX_DATAGRAM_BYTES = 1 << 18
_DECODER = msgspec.json.Decoder(list[StepReport])


class RowReceiver:
    """Takes the ranks' datagrams in a thread of its own: their queue holds only ten.

    Args:
        node_dir: Where the socket and the leftovers are.
        sink: Given each batch of reports, in the receiver's thread.
    """

    def __init__(self, node_dir: Path, sink: Callable[[list[StepReport]], None]) -> None:
        self._node_dir = node_dir
        self._sink = sink
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(node_dir / ROWS_SOCKET))
        self._socket.settimeout(0)
        self._taking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="rows", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take everything that has been sent or left in a file; after it nothing is under way."""
        self._take_waiting()
        for path in sorted(self._node_dir.glob("rank-*.rows.json")):
            data = path.read_bytes()
            path.unlink()
            self._take(data)

    def close(self) -> None:
        """Take what has been sent, then stop."""
        self._stop.set()
        self._thread.join()
        self.drain()
        self._socket.close()

    def _receive(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._socket, selectors.EVENT_READ)
            while not self._stop.is_set():
                if ready.select(timeout=_WAKE_S):
                    self._take_waiting()

    def _take_waiting(self) -> None:
        with self._taking:
            while True:
                try:
                    data = self._socket.recv(_MAX_DATAGRAM_BYTES)
                except BlockingIOError:
                    return
                self._take(data)

    def _take(self, data: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            self._sink(_DECODER.decode(data))


class RowShipper:
    """Flushes a ``Sender`` twice a second in a thread of its own.

    Args:
        sender: Batches, posts, spools.
        job: Whose rows.
    """

    def __init__(self, sender: Sender, job: JobSpec) -> None:
        self._sender = sender
        self._job = job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ship, name="ship", daemon=True)
        self._thread.start()

    def add(self, reports: list[StepReport]) -> None:
        """Queue reports; never blocks on I/O."""
        for report in reports:
            self._sender.add(
                StepRow(
                    ts=report.ts,
                    run_id=self._job.run_id,
                    generation=self._job.generation,
                    rank=report.rank,
                    step=report.step,
                    loss=report.loss,
                    tokens=report.tokens,
                    step_s=report.step_s,
                    sections=report.sections,
                )
            )

    def flush(self) -> None:
        """Send what waits, now."""
        self._sender.flush()

    def complaint(self) -> str | None:
        """That rows were lost, and why as far as it is known; None while none was."""
        num_dropped, why = self._sender.num_dropped, self._sender.last_error
        if num_dropped == 0:
            return None
        rows = "1 telemetry row was" if num_dropped == 1 else f"{num_dropped} telemetry rows were"
        reason = f" ({why})" if why else ""
        return f"{rows} dropped{reason}; training is not affected"

    def close(self) -> None:
        """Send what waits, then stop."""
        self._stop.set()
        self._thread.join()
        self._sender.flush()

    def _ship(self) -> None:
        while not self._stop.wait(FLUSH_EVERY_S):
            self._sender.flush()


class ConductorFile(msgspec.Struct, frozen=True):
    """The part of ``daemon.json`` that a sender needs."""

    url: str
    token: str


class ConductorPost:
    """Posts batches to the conductor named by its ``daemon.json``, read again after a failure."""

    def __init__(self, conductor_home: Path, run_id: str) -> None:
        self._path = conductor_home / "daemon.json"
        self._run_id = run_id
        self._known: ConductorFile | None = None

    def __call__(self, batch: str, table: str, data: bytes) -> None:
        """Deliver one batch.

        Raises:
            Unavailable: There is no conductor, or it did not take the batch.
        """
        try:
            self._post(batch, table, data)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            self._known = None
            raise Unavailable(f"the conductor does not answer ({error}); rows wait") from error

    def _post(self, batch: str, table: str, data: bytes) -> None:
        if self._known is None:
            self._known = msgspec.json.decode(self._path.read_bytes(), type=ConductorFile)
        address = urllib.parse.urlsplit(self._known.url)
        query = urllib.parse.urlencode({"run": self._run_id, "batch": batch, "table": table})
        connection = http.client.HTTPConnection(
            address.hostname or "127.0.0.1", address.port, timeout=POST_TIMEOUT_S
        )
        headers = {
            "Authorization": f"Bearer {self._known.token}",
            "Content-Type": "application/vnd.apache.arrow.stream",
        }
        with contextlib.closing(connection):
            connection.request("POST", f"/v1/ingest?{query}", body=data, headers=headers)
            answer = connection.getresponse()
            answer.read()
        if answer.status >= 300:
            raise http.client.HTTPException(f"status {answer.status}")
