"""Getting rows to the conductor, or into the bucket while it is away; training never notices."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import msgspec

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry.batch import batch_id, encode
from cloudshift_lab.telemetry.schema import SCHEMAS, Row, table_of

Post = Callable[[str, str, bytes], None]
Ingest = Callable[[str, str, bytes], bool]


class Batch(msgspec.Struct, frozen=True):
    """Encoded rows that wait for a way out."""

    batch_id: str
    table: str
    data: bytes
    num_rows: int


class Flushed(msgspec.Struct, frozen=True):
    """What one flush did, in rows; ``num_pending`` is what still waits in memory."""

    num_posted: int
    num_spooled: int
    num_pending: int


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did, in batches; ``damaged`` are the keys that damaged ones were moved to."""

    num_ingested: int
    num_seen_before: int
    damaged: tuple[str, ...] = ()


class Sender:
    """Collects rows of one process and sends them as batches.

    A batch is posted; where that fails it is written to the bucket; where that fails too it is
    kept, up to ``max_pending_rows``, beyond which new rows are dropped and counted. A batch that
    was posted with an unknown outcome may be sent again: its id makes the second one a no-op.

    ``num_dropped`` counts rows given up, ``last_error`` is why the newest delivery failed
    (None after a success). ``add`` may be called from any thread; ``flush`` from one at a time.
    """

    def __init__(
        self,
        post: Post | None,
        store: Store | None,
        run_id: str,
        *,
        generation: int,
        nonce: str,
        max_pending_rows: int = 50_000,
        max_batch_rows: int = 10_000,
    ) -> None:
        if max_pending_rows < 1 or max_batch_rows < 1:
            raise UsageError("telemetry limits must be at least 1 row; mend the call")
        self._post = post
        self._store = store
        self._run_id = run_id
        self._generation = generation
        self._nonce = nonce
        self._max_pending_rows = max_pending_rows
        self._max_batch_rows = max_batch_rows
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._rows: list[Row] = []
        self._batches: deque[Batch] = deque()
        self._num_batched_rows = 0
        self._next_number = 0
        self.num_dropped = 0
        self.last_error: str | None = None

    @property
    def num_pending(self) -> int:
        """Rows in memory that are neither delivered nor spooled."""
        return len(self._rows) + self._num_batched_rows

    def add(self, row: Row) -> None:
        """Take a row; a list append under a lock that is never held during I/O."""
        with self._lock:
            if self.num_pending >= self._max_pending_rows:
                self.num_dropped += 1
            else:
                self._rows.append(row)

    def flush(self) -> Flushed:
        """Deliver what waits. Never raises for a delivery that failed: see ``last_error``."""
        with self._flushing:
            self._encode_rows()
            posted = self._drain("the conductor", self._post)
            spooled = self._drain("the bucket", self._spool if self._store else None)
            return Flushed(num_posted=posted, num_spooled=spooled, num_pending=self.num_pending)

    def _encode_rows(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
            self._num_batched_rows += len(rows)
        for table in SCHEMAS:
            of_table = [row for row in rows if table_of(row) == table]
            for start in range(0, len(of_table), self._max_batch_rows):
                self._enqueue(table, of_table[start : start + self._max_batch_rows])

    def _enqueue(self, table: str, rows: list[Row]) -> None:
        try:
            data = encode(table, rows)
        except UsageError as error:
            self.last_error = str(error)
            if len(rows) == 1:
                self._settle(1, num_dropped=1)
                return
            middle = len(rows) // 2
            self._enqueue(table, rows[:middle])
            self._enqueue(table, rows[middle:])
            return
        name = batch_id(self._run_id, self._generation, self._nonce, self._next_number)
        self._next_number += 1
        self._batches.append(Batch(name, table, data, len(rows)))

    def _drain(self, where: str, deliver: Post | None) -> int:
        """Deliver waiting batches until one fails; the number of rows delivered."""
        num_rows = 0
        while self._batches and deliver is not None:
            batch = self._batches[0]
            try:
                deliver(batch.batch_id, batch.table, batch.data)
            except Exception as error:  # noqa: BLE001 - recorded; telemetry must not stop training
                self.last_error = f"telemetry did not reach {where}: {error}"
                break
            self._batches.popleft()
            self._settle(batch.num_rows)
            num_rows += batch.num_rows
            self.last_error = None
        return num_rows

    def _settle(self, num_rows: int, *, num_dropped: int = 0) -> None:
        with self._lock:
            self._num_batched_rows -= num_rows
            self.num_dropped += num_dropped

    def _spool(self, name: str, table: str, data: bytes) -> None:
        assert self._store is not None
        self._store.put(spool_key(self._run_id, name, table), data)


def spool_key(run_id: str, name: str, table: str) -> str:
    """Where a batch waits in the bucket."""
    return f"{_prefix(run_id)}{name}.{table}.arrow"


def replay(store: Store, run_id: str, ingest: Ingest) -> Replayed:
    """Take in what was spooled, deleting each batch once ``ingest`` has returned (is durable).

    A batch whose bytes are damaged is moved to ``runs/<run>/telemetry-damaged/`` so that it is
    neither lost nor tried for ever. Two replays at once are safe: ids make the second a no-op.

    Raises:
        CloudshiftError: The store or ``ingest`` failed; what was not taken in stays spooled.
    """
    num_ingested, num_seen_before, damaged = 0, 0, []
    for key in sorted(store.list(_prefix(run_id))):
        name, table = _parse(run_id, key)
        if table not in SCHEMAS:
            continue
        try:
            data = store.get(key)
        except NotFound:
            continue  # another replay was faster
        try:
            is_new = ingest(name, table, data)
        except Corrupt:
            aside = f"runs/{run_id}/telemetry-damaged/{name}.{table}.arrow"
            store.put(aside, data)
            damaged.append(aside)
        else:
            num_ingested += is_new
            num_seen_before += not is_new
        store.delete(key)
    return Replayed(num_ingested, num_seen_before, tuple(damaged))


def _prefix(run_id: str) -> str:
    return f"runs/{run_id}/telemetry/"


def _parse(run_id: str, key: str) -> tuple[str, str]:
    """``(batch id, table)``; table is empty for a key that is no spooled batch."""
    stem = key.removeprefix(_prefix(run_id))
    if not stem.endswith(".arrow") or "/" in stem:
        return stem, ""
    name, _, table = stem.removesuffix(".arrow").rpartition(".")
    return name, table
