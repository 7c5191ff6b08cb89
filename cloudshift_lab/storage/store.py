"""The one way to reach objects: the Store protocol, and opening a store by its URL."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from cloudshift_lab.core.errors import CloudshiftError, Unsupported, UsageError
from cloudshift_lab.core.home import store_options
from cloudshift_lab.core.placement import Cloud
from cloudshift_lab.core.world import REAL_WORLD, World

DEADLINE_S = 30.0
MAX_CREATE_BYTES = 1_000_000
Request = tuple[str, int | None, int | None]
Blob = bytes | memoryview
"""What is put; a view's memory may change once the call has ended."""


class Store(Protocol):
    """Objects below one URL; safe to use from several threads.

    Every call ends within the store's deadline. Errors: ``NotFound``, ``Denied`` (credentials,
    read-only), ``Unavailable`` (no answer in time: the outcome of a write is then unknown),
    ``Exhausted`` (space or quota), ``UsageError`` (an impossible key or range).
    """

    @property
    def url(self) -> str:
        """Where the objects are, without credentials and without a slash at the end."""

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """The object, or its bytes ``start..end``; what lies beyond its end is left out."""

    def put(self, key: str, data: Blob) -> None:
        """Write or replace one object; readers see the old bytes or the new, never a mixture."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; under 1 MB, with a nonce in its bytes.

        Returns:
            True when the object now there is exactly ours, False when it is somebody else's.

        Raises:
            Unavailable: Unknown whether it was written: read it back before doing anything else.
        """

    def size(self, key: str) -> int | None:
        """Bytes of the object; None when there is none."""

    def list(self, prefix: str) -> list[str]:
        """All keys below the folder ``prefix``, sorted; for diagnostics and collection only."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        """``get`` for each ``(key, start, end)``, in the order asked."""

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        """``get`` for each, given with its number as soon as it is there, in any order.

        No more than ``concurrency`` answers are held or under way: a slow taker slows the reading.
        Close the iterator when no more are wanted.
        """

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        """``put`` for each item; when it fails some of them may be written."""


@runtime_checkable
class Retrying(Protocol):
    """A store that retries by itself, and can be asked not to."""

    def once(self) -> Store:
        """The same store, one attempt per call; ``Unavailable`` has the fact ``busy``."""


def without_retries(store: Store) -> Store:
    """A view of the store that reports the first failure, for callers that retry themselves."""
    return store.once() if isinstance(store, Retrying) else store


def check_create_size(data: bytes) -> None:
    """Hold create-if-absent to bodies that every client sends in one request.

    Raises:
        UsageError: Too large.
    """
    if len(data) >= MAX_CREATE_BYTES:
        raise UsageError(
            f"create-if-absent takes less than {MAX_CREATE_BYTES} bytes, not {len(data)}; "
            "put the body under its hash and create a small record that names it"
        )


def open_store(
    url: str,
    options: Mapping[str, object] | None = None,
    *,
    world: World = REAL_WORLD,
    deadline_s: float = DEADLINE_S,
) -> Store:
    """Open the store at ``file://``, ``s3://``, ``gs://``, ``az://``, ``etcd://`` or ``memory://``.

    Args:
        url: Folder under which all keys lie. ``etcd://host:port/folder`` holds small objects only.
        options: fsspec options of the cloud; may hold credentials, never shown again.
        world: Clock and jitter of the retries.
        deadline_s: Longest time any one call may take, seconds.

    Raises:
        UsageError: A scheme we do not know, or options that the cloud's library refuses.
        Unsupported: The cloud's library is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not rest.strip("/"):
        raise UsageError(
            f"'{url}' is no store; give file:///folder, s3://bucket/folder, gs://... or az://..."
        )
    if scheme == "memory":
        from cloudshift_lab.storage.memory import shared_memory_store

        return shared_memory_store(url)
    if scheme == "file":
        from cloudshift_lab.storage.file import FileStore

        return FileStore(url)
    from cloudshift_lab.storage.remote import open_remote

    return open_remote(url, options or {}, world=world, deadline_s=deadline_s)


def open_cloud_store(
    cloud: Cloud,
    *,
    inside: bool = False,
    world: World = REAL_WORLD,
    deadline_s: float = DEADLINE_S,
) -> Store:
    """Open the store of a configured cloud, with the runs' logs where ``log_url`` says.

    Args:
        cloud: Whose; its ``store_options`` are also those of a ``log_url`` that is not etcd's.
        inside: Whether who opens it runs in that cloud.
        world: Clock and jitter of the retries.
        deadline_s: Longest time any one call may take, seconds.

    Raises:
        UsageError, Unsupported: As ``open_store`` for either URL.
    """
    options = store_options(cloud, inside=inside)
    data = open_store(cloud.store_url, options, world=world, deadline_s=deadline_s)
    if not cloud.log_url:
        return data
    from cloudshift_lab.storage.split import SplitStore

    of_log = {} if cloud.log_url.startswith("etcd") else options
    return SplitStore(open_store(cloud.log_url, of_log, world=world, deadline_s=deadline_s), data)


def probe_store(store: Store, *, world: World = REAL_WORLD) -> None:
    """Prove that a store can carry a run: it writes, reads back, and refuses a second create.

    Raises:
        Unsupported: It lets a second create of the same key through, or returns other bytes.
        Denied, Unavailable, Exhausted: As the store reported.
    """
    from cloudshift_lab.storage.split import SplitStore

    if isinstance(store, SplitStore):
        probe_store(store.log, world=world)
        store = store.data
    key = f"probe/{world.new_id('probe')}"
    mine, other = (f'{{"nonce":"{world.new_id("nonce")}"}}'.encode() for _ in range(2))
    won, lost = store.create(key, mine), store.create(key, other)
    found = store.get(key)
    _forget(store, key)
    if not won or lost or found != mine:
        raise Unsupported(
            f"{store.url} ignores create-if-absent: two owners could both win a run; "
            "use a store that honours conditional writes"
        )


def _forget(store: Store, key: str) -> None:
    """Delete the probe's object where that is allowed; a bucket without delete still works."""
    try:
        store.delete(key)
    except CloudshiftError:
        return
