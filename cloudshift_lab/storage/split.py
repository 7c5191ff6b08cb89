"""A store whose run logs are kept in another one: etcd for who owns what, a bucket for the rest."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence

from cloudshift_lab.core.errors import NotFound, UsageError
from cloudshift_lab.storage.fanout import fan_out, fan_out_each
from cloudshift_lab.storage.logstate import LogPointer, log_key, pointer_in
from cloudshift_lab.storage.store import Blob, Request, Store, without_retries

_OF_A_LOG = re.compile(r"runs/([^/]+)/(?:log/.+|hb/.+|claim\.json)")


class SplitStore:
    """Logs, heartbeats and claims of runs in ``log``, everything else in ``data``.

    The place of a run's log is fixed with its first record: in ``data`` a pointer then stands in
    that record's place, created only if absent. Whoever opens ``data`` alone meets the pointer and
    stops; a run whose log began in ``data`` stays there.
    """

    def __init__(self, log: Store, data: Store) -> None:
        self.log = log
        self.data = data
        self.url = data.url
        self._homes: dict[str, Store] = {}

    def __repr__(self) -> str:
        return f"SplitStore({self.log!r}, {self.data!r})"

    def once(self) -> Store:
        """The same without retries of either store."""
        view = SplitStore(without_retries(self.log), without_retries(self.data))
        view._homes = {
            run: view.log if home is self.log else view.data for run, home in self._homes.items()
        }
        return view

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        return self._home(key).get(key, start=start, end=end)

    def put(self, key: str, data: Blob) -> None:
        self._home(key).put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        match = _OF_A_LOG.fullmatch(key)
        if match is not None and key == log_key(match.group(1), 0):
            self._settle(match.group(1))
        return self._home(key).create(key, data)

    def size(self, key: str) -> int | None:
        return self._home(key).size(key)

    def list(self, prefix: str) -> list[str]:
        return sorted({*self.data.list(prefix), *self.log.list(prefix)})

    def delete(self, key: str) -> None:
        self._home(key).delete(key)

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return fan_out(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        return fan_out_each(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        fan_out(lambda item: self.put(*item), objects.items(), concurrency)

    def _home(self, key: str) -> Store:
        """Where a key is. A run without a log has it, so far, in ``log``."""
        match = _OF_A_LOG.fullmatch(key)
        if match is None:
            return self.data
        run_id = match.group(1)
        if run_id not in self._homes and (home := self._found(run_id)) is not None:
            self._homes[run_id] = home
        return self._homes.get(run_id, self.log)

    def _settle(self, run_id: str) -> None:
        """Fix the place of a run's log, if nobody did before: by its pointer in ``data``."""
        if run_id not in self._homes:
            self.data.create(log_key(run_id, 0), LogPointer(self.log.url).body())

    def _found(self, run_id: str) -> Store | None:
        """What the first record in ``data`` says: a pointer, a log, or nothing yet."""
        try:
            first = self.data.get(log_key(run_id, 0))
        except NotFound:
            return None
        if (pointer := pointer_in(first)) is None:
            return self.data
        if pointer.log_url != self.log.url:
            raise UsageError(
                f"the log of run {run_id} is at {pointer.log_url}, not at {self.log.url}; set "
                "log_url of its cloud to that"
            )
        return self.log
