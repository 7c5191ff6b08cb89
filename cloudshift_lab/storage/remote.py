"""A store in a cloud: our own deadlines, retries and honest answers around a client library."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    Denied,
    Exhausted,
    NotFound,
    Unavailable,
    Unsupported,
    UsageError,
)
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.dialect import Dialect, Verdict, secrets_in
from cloudshift_lab.storage.fanout import fan_out, fan_out_each
from cloudshift_lab.storage.keys import check_key, check_range, under
from cloudshift_lab.storage.store import Blob, Request, Store, check_create_size

Result = TypeVar("Result")
Call = Callable[[Dialect], Coroutine[Any, Any, Result]]

ATTEMPT_S = 5.0
WHOLE_OBJECT_ATTEMPT_S = 15.0
SLOWEST_BYTES_PER_S = 2 * 2**20
_LONGEST_PAUSE_S = 5.0
_SHORTEST_ATTEMPT_S = 0.2
_TRANSIENT = ("again", "busy")
_BAD_OPTIONS = (TypeError, ValueError, KeyError)
_DETAIL_CHARS = 160


class RemoteStore:
    """Objects in a bucket.

    Each call is tried until ``deadline_s`` is over, an attempt at a time, with a random pause in
    between (full jitter). A create whose answer was lost is settled by reading the object back.
    A process that forked gets a client of its own.
    """

    _tries_once = False

    def __init__(
        self,
        url: str,
        dialect: Callable[[], Dialect],
        *,
        world: World,
        deadline_s: float,
        secrets: frozenset[str] = frozenset(),
    ) -> None:
        self.url = url.rstrip("/")
        self._make = dialect
        self._world = world
        self._deadline_s = deadline_s
        self._secrets = secrets
        self._dialect: tuple[int, Dialect] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    def once(self) -> Store:
        """The same store, one attempt per call: for callers that retry and slow down themselves."""
        return _OneAttempt(self)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        return self._get(key, start, end, self._until())

    def put(self, key: str, data: Blob) -> None:
        body, name = bytes(data), check_key(key)
        limit_s = _attempt_s(len(body))
        self._run("write", key, lambda d: d.put(name, body), self._until(), limit_s)

    def create(self, key: str, data: bytes) -> bool:
        check_create_size(data)
        body, name, until = bytes(data), check_key(key), self._until()
        try:
            self._run("create", key, lambda d: d.create(name, body), until)
        except Conflict:
            return self._holds(key, body, until)
        return True

    def size(self, key: str) -> int | None:
        name = check_key(key)
        try:
            return self._run("look at", key, lambda d: d.size(name), self._until())
        except NotFound:
            return None

    def list(self, prefix: str) -> list[str]:
        start = under(prefix)
        limit_s = WHOLE_OBJECT_ATTEMPT_S
        try:
            found = self._run("list", prefix, lambda d: d.find(start), self._until(), limit_s)
        except NotFound:
            return []
        return sorted(key for key in found if key.startswith(start))

    def delete(self, key: str) -> None:
        name = check_key(key)
        try:
            self._run("delete", key, lambda d: d.delete(name), self._until())
        except NotFound:
            return

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return fan_out(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        return fan_out_each(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        fan_out(lambda item: self.put(*item), objects.items(), concurrency)

    def _get(self, key: str, start: int | None, end: int | None, until: float) -> bytes:
        name = check_key(key)
        first, last = check_range(start, end)
        if last == first:
            return b""
        limit_s = WHOLE_OBJECT_ATTEMPT_S if last is None else _attempt_s(last - first)
        return self._run("read", key, lambda d: d.get(name, first, last), until, limit_s)

    def _holds(self, key: str, body: bytes, until: float) -> bool:
        """After 'it exists': is it ours? A client may say so of its own write."""
        try:
            return self._get(key, None, None, until) == body
        except NotFound as error:
            raise Unavailable(
                f"{self.url}/{key} was taken and then gone; somebody deletes it, ask them to stop",
                url=self.url,
            ) from error

    def _until(self) -> float:
        return self._world.monotonic() + self._deadline_s

    def _run(
        self, verb: str, key: str, call: Call[Result], until: float, limit_s: float = ATTEMPT_S
    ) -> Result:
        """Try until it works, is refused for good, or the deadline is over."""
        dialect, longest_pause_s = self._connected(until), 0.1
        while True:
            left_s = until - self._world.monotonic()
            try:
                return _wait(dialect, call(dialect), min(limit_s, left_s))
            except dialect.errors as caught:
                error = caught
            verdict = dialect.judge(error)
            if verdict == "beyond":
                return b""  # type: ignore[return-value]
            if verdict not in _TRANSIENT:
                raise self._explain(verdict, verb, key, error)
            left_s = until - self._world.monotonic()
            if self._tries_once or left_s < _SHORTEST_ATTEMPT_S:
                raise self._silent(verb, key, error, is_busy=verdict == "busy")
            self._world.sleep(min(longest_pause_s * self._world.random(), left_s / 2))
            longest_pause_s = min(2 * longest_pause_s, _LONGEST_PAUSE_S)

    def _connected(self, until: float) -> Dialect:
        """This process's client, built on first use."""
        with self._lock:
            if self._dialect is not None and self._dialect[0] == os.getpid():
                return self._dialect[1]
            dialect = self._make()
            expected: tuple[type[Exception], ...] = dialect.errors + _BAD_OPTIONS
            try:
                dialect.build()
                _wait(dialect, dialect.connect(), until - self._world.monotonic())
            except expected as caught:
                error = caught
            else:
                self._dialect = (os.getpid(), dialect)
                return dialect
        if isinstance(error, _BAD_OPTIONS):
            raise self._explain("refused", "open", "", error)
        verdict = dialect.judge(error)
        if verdict in _TRANSIENT:
            raise self._silent("open", "", error)
        raise self._explain(verdict, "open", "", error)

    def _explain(self, verdict: Verdict, verb: str, key: str, error: Exception) -> CloudshiftError:
        what = f"cannot {verb} {self.url}/{key}".rstrip("/")
        detail = self._detail(error)
        if verdict == "absent" and verb in ("write", "create"):
            return NotFound(f"{what}: there is no such bucket; create it", url=self.url)
        if verdict == "absent":
            return NotFound(f"{self.url}/{key} does not exist; check the name", key=key)
        if verdict == "exists":
            return Conflict(f"{what}: it exists; read it back", key=key)
        if verdict == "denied":
            return Denied(
                f"{what}: access refused ({detail}); check the credentials and the bucket's "
                "permissions",
                url=self.url,
            )
        if verdict == "full":
            return Exhausted(f"{what}: no space ({detail}); free some", url=self.url)
        return UsageError(f"{what} ({detail}); mend the store's URL or options", url=self.url)

    def _silent(
        self, verb: str, key: str, error: Exception, *, is_busy: bool = False
    ) -> Unavailable:
        limit = "" if self._tries_once else f" within {self._deadline_s:g} s"
        return Unavailable(
            f"{self.url} did not {verb} {key or 'it'}{limit} "
            f"({self._detail(error)}); check the network and the endpoint, then try again",
            url=self.url, busy=is_busy,
        )  # fmt: skip

    def _detail(self, error: Exception) -> str:
        """The library's words on one short line, without any credential."""
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_DETAIL_CHARS]


class _OneAttempt(RemoteStore):
    """Another view of a store, with its client."""

    _tries_once = True

    def __init__(self, whole: RemoteStore) -> None:
        super().__init__(
            whole.url,
            whole._make,
            world=whole._world,
            deadline_s=whole._deadline_s,
            secrets=whole._secrets,
        )
        self._whole = whole

    def _connected(self, until: float) -> Dialect:
        return self._whole._connected(until)


def _attempt_s(num_bytes: int) -> float:
    return ATTEMPT_S + num_bytes / SLOWEST_BYTES_PER_S


def _wait(dialect: Dialect, call: Coroutine[Any, Any, Result], limit_s: float) -> Result:
    """Run a coroutine on the client's loop, in another thread, for at most ``limit_s``."""
    bounded = asyncio.wait_for(call, max(limit_s, 0.001))
    return asyncio.run_coroutine_threadsafe(bounded, dialect.loop).result()


def open_remote(
    url: str, options: Mapping[str, object], *, world: World, deadline_s: float
) -> RemoteStore:
    """Open an ``s3://``, ``gs://`` or ``az://`` store.

    Raises:
        UsageError: A scheme we do not know.
        Unsupported: The cloud's library is not installed.
    """
    scheme, _, rest = url.rstrip("/").partition("://")
    bucket, _, folder = rest.partition("/")
    folder = under(folder)

    def dialect() -> Dialect:
        return _DIALECTS[scheme](bucket, folder, options)

    if scheme not in _DIALECTS:
        raise UsageError(f"'{scheme}' is no kind of store; use s3://, gs://, az:// or file://")
    return RemoteStore(
        url,
        dialect,
        world=world,
        deadline_s=deadline_s,
        secrets=_every_spelling(secrets_in(options)),
    )


def _every_spelling(secrets: Iterable[str]) -> frozenset[str]:
    """Each secret, and how it looks inside a URL and outside of one."""
    return frozenset(
        form for each in secrets for form in (each, quote(each, safe=""), unquote(each))
    )


def _s3(bucket: str, folder: str, options: Mapping[str, object]) -> Dialect:
    try:
        from cloudshift_lab.storage.s3 import S3Dialect
    except ImportError as error:
        raise Unsupported(
            "S3 needs another package; run: pip install 'cloudshift-lab[s3]'"
        ) from error
    return S3Dialect(bucket, folder, options)


def _gcs(bucket: str, folder: str, options: Mapping[str, object]) -> Dialect:
    try:
        from cloudshift_lab.storage.gcs import GcsDialect
    except ImportError as error:
        raise Unsupported(
            "Google Cloud Storage needs another package; run: pip install 'cloudshift-lab[gcs]'"
        ) from error
    return GcsDialect(bucket, folder, options)


def _azure(container: str, folder: str, options: Mapping[str, object]) -> Dialect:
    try:
        from cloudshift_lab.storage.azure import AzureDialect
    except ImportError as error:
        raise Unsupported(
            "Azure Blob Storage needs another package; run: pip install 'cloudshift-lab[azure]'"
        ) from error
    return AzureDialect(container, folder, options)


def _etcd(hosts: str, folder: str, options: Mapping[str, object]) -> Dialect:
    try:
        from cloudshift_lab.storage.etcd import EtcdDialect
    except ImportError as error:
        raise Unsupported(
            "etcd needs another package; run: pip install 'cloudshift-lab[etcd]'"
        ) from error
    return EtcdDialect(hosts, folder, options)


def _etcds(hosts: str, folder: str, options: Mapping[str, object]) -> Dialect:
    return _etcd(hosts, folder, {"protocol": "https", **options})


_DIALECTS: dict[str, Callable[[str, str, Mapping[str, object]], Dialect]] = {
    "s3": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "az": _azure,
    "abfs": _azure,
    "etcd": _etcd,
    "etcds": _etcds,
}
