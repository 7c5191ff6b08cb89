"""Keys, limits and JSON documents of format versions 1 and 2 (FORMAT.md sections 1 to 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from cloudshift_lab.checkpoint.boxes import Ints, TensorBox, TensorSpec
from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.store import Store

VERSION = 1
DELTA_VERSION = 2  # of records with deltas, and of manifests that list one: others stay readable
ROOT_KEY = "cloudshift.json"
MAX_CHUNK_BYTES = 16 * 2**20
MAX_PACK_BYTES = 2**30
MAX_DOCUMENT_BYTES = 256 * 2**20
PACK_BYTES = 16 * 2**20
Coverage = Literal["complete", "degraded", "partial"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MANIFEST_KEY = re.compile(
    r"runs/[^/]+/steps/(?P<step>[0-9]{8,18})/g(?P<generation>[0-9]{1,18})/manifest\.[0-9a-f]{64}\.json"
)


class ObjectRef(msgspec.Struct, frozen=True):
    """An object by its hash and size; its key follows from where the reference stands."""

    blake3: str
    size: int


class RankRef(msgspec.Struct, frozen=True):
    """One rank's record as the manifest lists it, and its chunk table, so that both are read at
    once; steps of older writers leave ``index`` out.
    """

    rank: int
    blake3: str
    size: int
    index: ObjectRef | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole step."""

    format: Literal["cloudshift-manifest"] = "cloudshift-manifest"
    version: int = VERSION
    run_id: str
    step: int
    generation: int
    world_size: int
    coverage: Coverage
    ranks: tuple[RankRef, ...]
    packs: tuple[ObjectRef, ...]
    raw_bytes: int
    stored_bytes: int


class BoxEntry(TensorBox, frozen=True, kw_only=True):
    """A box as a rank record lists it, with the shape of its grid cell."""

    cell: Ints


class RankRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank stored of one step."""

    format: Literal["cloudshift-rank"] = "cloudshift-rank"
    version: int = VERSION
    run_id: str
    step: int
    generation: int
    rank: int
    world_size: int
    boxes: tuple[BoxEntry, ...]
    catalog: tuple[TensorSpec, ...] = ()
    packs: tuple[ObjectRef, ...]
    index: ObjectRef
    raw_bytes: int
    stored_bytes: int
    leaves: msgspec.Raw


class StepDir(NamedTuple):
    """One writer's folder of one step: ``runs/<run>/steps/<step>/g<generation>``."""

    run_id: str
    step: int
    generation: int

    @property
    def prefix(self) -> str:
        return f"runs/{self.run_id}/steps/{self.step:08d}/g{self.generation}"

    def manifest_key(self, digest: str) -> str:
        return f"{self.prefix}/manifest.{check_hash(digest)}.json"

    def record_key(self, rank: int, world_size: int, digest: str) -> str:
        return f"{self.prefix}/rank-{rank}of{world_size}.{check_hash(digest)}.json"

    def index_key(self, rank: int, world_size: int, digest: str) -> str:
        return f"{self.prefix}/rank-{rank}of{world_size}.{check_hash(digest)}.index"


def step_dir(run_id: str, step: int, generation: int) -> StepDir:
    """The folder of a step.

    Raises:
        UsageError: The run id or a number cannot be part of a key.
    """
    if not _RUN_ID.fullmatch(run_id) or step < 0 or generation < 0:
        raise UsageError(
            f"run '{run_id[:80]}' step {step} generation {generation} cannot name a checkpoint; "
            "use letters, digits, '.', '_' and '-' and numbers from 0"
        )
    return StepDir(run_id, step, generation)


def parse_manifest_key(run_id: str, key: str, digest: str) -> StepDir:
    """The folder in which a manifest lies, from the key in a log record.

    Raises:
        Corrupt: The key is not that of a manifest of this run with this digest.
    """
    match = _MANIFEST_KEY.fullmatch(key)
    if match is not None:
        place = step_dir(run_id, int(match["step"]), int(match["generation"]))
        if place.manifest_key(digest) == key:
            return place
    raise Corrupt(
        f"'{key[:200]}' is not a manifest key of run '{run_id}' with digest {digest[:16]}; "
        "check the run log"
    )


def pack_key(digest: str) -> str:
    """Where the pack with this hash lies."""
    return f"packs/{check_hash(digest)[:2]}/{digest}.pack"


def check_hash(digest: str) -> str:
    """Return ``digest`` if it is 64 hex digits, so that no key is ever built from anything else.

    Raises:
        Corrupt: It is something else.
    """
    if not _HASH.fullmatch(digest):
        raise Corrupt(f"'{digest[:80]}' is not a blake3 hash; use another step")
    return digest


def blake3_hex(data: bytes | memoryview) -> str:
    """The hash that names an object."""
    return str(blake3(data).hexdigest())


Document = TypeVar("Document", Manifest, RankRecord)


def parse_document(data: bytes, kind: type[Document], key: str) -> Document:
    """Decode a manifest or rank record whose hash was checked, and bound what it says.

    Raises:
        Corrupt: Not such a document, an unknown version, or numbers out of range.
    """
    document = from_json(data, kind, what=key)
    if document.version not in (VERSION, DELTA_VERSION):
        raise Corrupt(f"{key} has format version {document.version}; update cloudshift-lab")
    packs_fit = all(0 < pack.size <= MAX_PACK_BYTES for pack in document.packs)
    if not packs_fit or not 0 < document.world_size < 2**31:
        raise Corrupt(f"{key} has sizes out of range; use another step")
    for pack in document.packs:
        check_hash(pack.blake3)
    return document


def fetch_verified(store: Store, key: str, digest: str, size: int | None = None) -> bytes:
    """Read a whole object and check it against its hash, twice if need be (transport errors).

    Args:
        store: Where it lies.
        key: Its key.
        digest: blake3 hex it must have.
        size: Bytes it must have; None: unknown.

    Raises:
        Corrupt: Its bytes differ from the hash.
        NotFound: It is not there.
    """
    if size is not None:
        _check_size(key, size)
    for _ in range(2):
        data = store.get(key) if size is None else store.get(key, start=0, end=size + 1)
        if blake3_hex(data) == digest:
            return data
    raise Corrupt(
        f"{store.url}/{key} differs from its hash; restore a copy or use another step",
        key=key, expected=digest, found=blake3_hex(data), size=len(data),
    )  # fmt: skip


def fetch_all_verified(
    store: Store, wanted: Sequence[tuple[str, str, int]], concurrency: int
) -> list[bytes]:
    """Read whole objects, given as (key, blake3, size), at once; each checked, in order.

    Raises:
        Corrupt: One differs from its hash, also when read again.
        NotFound: One is not there.
    """
    for key, _, size in wanted:
        _check_size(key, size)
    bodies = store.get_many([(key, None, None) for key, _, _ in wanted], concurrency=concurrency)
    return [
        body if blake3_hex(body) == digest else fetch_verified(store, key, digest, size)
        for body, (key, digest, size) in zip(bodies, wanted, strict=True)
    ]


def _check_size(key: str, size: int) -> None:
    if not 0 <= size <= MAX_DOCUMENT_BYTES:
        raise Corrupt(f"{key} claims {size} bytes, more than the format allows; use another step")


def prepare_root(store: Store) -> None:
    """Create ``cloudshift.json`` if the store has none.

    Raises:
        Corrupt: There is one of another version.
    """
    mine = to_json(
        {
            "format": "cloudshift",
            "grid": "clamp(bytes/256, 256KiB, 1MiB) in global rows",
            "hash": "blake3",
            "version": VERSION,
        }
    )
    if store.size(ROOT_KEY) == len(mine) or store.create(ROOT_KEY, mine):
        return
    found = from_json(store.get(ROOT_KEY), dict[str, object], what=f"{store.url}/{ROOT_KEY}")
    if found.get("version") != VERSION:
        raise Corrupt(
            f"{store.url} holds checkpoints of format version {found.get('version')}; "
            "update cloudshift-lab or use another folder"
        )
