"""Copy objects between stores, each verified on the way and none sent twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.store import Request, Store

PART_BYTES = 8 * 2**20
GROUP_BYTES = 128 * 2**20
_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{64})\.pack")


@dataclass(frozen=True)
class CopyReport:
    """What one copy did: bytes and objects sent, objects the target had already, seconds."""

    num_bytes: int
    num_objects: int
    skipped: int
    duration_s: float = 0.0


@dataclass(frozen=True)
class _Item:
    key: str
    num_bytes: int
    expected: str | None

    def requests(self) -> list[Request]:
        starts = range(0, self.num_bytes, PART_BYTES) or [0]
        return [(self.key, start, min(start + PART_BYTES, self.num_bytes)) for start in starts]


def copy_keys(
    source: Store,
    target: Store,
    keys: Mapping[str, str | None],
    *,
    world: World = REAL_WORLD,
    progress: Callable[[int, int], None] | None = None,
    concurrency: int = 8,
) -> CopyReport:
    """Copy ``keys`` in their order; an object that the target has in the same size is skipped.

    Args:
        source: Where to read.
        target: Where to write, under the same keys.
        keys: Key to its expected blake3 (hex), or None: then a pack is checked against its name
            and anything else only against its size.
        world: Clock of the report.
        progress: Called as ``progress(bytes_done, bytes_in_all)``, skipped bytes left out.
        concurrency: Requests under way at a time, in parts of 8 MiB.

    Raises:
        NotFound: The source lacks a key; names it.
        Corrupt: Bytes read twice still differ from their hash; nothing of it was written.
        Unavailable, Denied, Exhausted: As a store reported; copying again goes on from there.
    """
    began = world.monotonic()
    items = [item for key in keys if (item := _missing(source, target, key, keys[key])) is not None]
    total, done = sum(item.num_bytes for item in items), 0
    for group in _groups(items):
        target.put_many(_read_group(source, group, concurrency), concurrency)
        done += sum(item.num_bytes for item in group)
        if progress is not None:
            progress(done, total)
    return CopyReport(done, len(items), len(keys) - len(items), world.monotonic() - began)


def expected_hash(key: str, given: str | None) -> str | None:
    """The blake3 an object must have: the given one, or the one in a pack's name."""
    match = _PACK.fullmatch(key)
    return given or (match.group(1) if match else None)


def _missing(source: Store, target: Store, key: str, given: str | None) -> _Item | None:
    there, here = target.size(key), source.size(key)
    if here is None and there is None:
        raise NotFound(f"{source.url}/{key} does not exist; check the source's checkpoint", key=key)
    if here is None or here == there:
        return None
    return _Item(key, here, expected_hash(key, given))


def _groups(items: list[_Item]) -> Iterator[list[_Item]]:
    """Items in order, as many at a time as fit into memory."""
    group: list[_Item] = []
    for item in items:
        if group and sum(member.num_bytes for member in group) + item.num_bytes > GROUP_BYTES:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _read_group(source: Store, group: list[_Item], concurrency: int) -> dict[str, bytes]:
    requests = [request for item in group for request in item.requests()]
    parts = iter(source.get_many(requests, concurrency))
    joined = {item.key: b"".join(next(parts) for _ in item.requests()) for item in group}
    for item in group:
        if not _is_right(item, joined[item.key]):
            joined[item.key] = _read_again(source, item, concurrency)
    return joined


def _read_again(source: Store, item: _Item, concurrency: int) -> bytes:
    """A second reading tells damage on the wire from damage at rest."""
    data = b"".join(source.get_many(item.requests(), concurrency))
    if _is_right(item, data):
        return data
    found = blake3(data).hexdigest()
    raise Corrupt(
        f"{source.url}/{item.key} is damaged ({len(data)} bytes hash to {found[:12]}, expected "
        f"{(item.expected or '?')[:12]}, {item.num_bytes} bytes); use an older step",
        key=item.key, expected=item.expected, found=found,
    )  # fmt: skip


def _is_right(item: _Item, data: bytes) -> bool:
    if len(data) != item.num_bytes:
        return False
    return item.expected is None or blake3(data).hexdigest() == item.expected
