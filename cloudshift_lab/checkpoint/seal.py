"""Close a step: check that the ranks' boxes cover every tensor, then write the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from cloudshift_lab.checkpoint.boxes import Region, TensorSpec, covers, whole
from cloudshift_lab.checkpoint.layout import (
    Coverage,
    Manifest,
    ObjectRef,
    RankRecord,
    RankRef,
    StepDir,
    blake3_hex,
    fetch_verified,
    pack_key,
    parse_document,
    parse_manifest_key,
    prepare_root,
    step_dir,
)
from cloudshift_lab.checkpoint.share import WrittenRank
from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.store import Store


class Sealed(msgspec.Struct, frozen=True):
    """A step whose every byte is stored; it exists once the run log holds a commit of it."""

    step: int
    manifest_key: str
    manifest_digest: str
    coverage: Coverage
    raw_bytes: int
    stored_bytes: int
    holes: tuple[str, ...] = ()


def seal(
    store: Store, run_id: str, step: int, *, generation: int, world_size: int,
    written: Sequence[WrittenRank], partial: Literal["refuse", "keep"] = "refuse",
    concurrency: int = 1,
) -> Sealed:  # fmt: skip
    """Check coverage and storage of all records, then write the manifest. Safe to repeat.

    ``RunLog.commit`` with the returned key and digest is the caller's next line; a ``partial``
    seal must not be committed as an ordinary step.

    Args:
        store: Where the ranks wrote.
        run_id: Whose step it is.
        step: Optimizer step.
        generation: The writers' fencing token.
        world_size: Ranks of the job; fewer may have written.
        written: What ``write_rank`` returned, of any subset of the ranks.
        partial: What to do when elements of some tensor are nowhere.
        concurrency: Size questions to the store at a time.

    Raises:
        UsageError: The step is partial and that was not asked for, or the same rank twice.
        Corrupt: A record does not belong here, or an object it refers to is missing or cut off.
        Unavailable, Denied, Exhausted: As the store reported; call again.
    """
    place = step_dir(run_id, step, generation)
    ordered = sorted(written, key=lambda w: w.rank)
    if len({w.rank for w in ordered}) != len(ordered) or not ordered:
        raise UsageError(f"step {step} lists no rank, or one twice; pass each written rank once")
    records = [_read_back(store, place, world_size, w) for w in ordered]
    coverage, holes = judge(records, world_size)
    if coverage == "partial" and partial == "refuse":
        raise UsageError(
            f"step {step} is partial: {len(holes)} tensors have holes ({', '.join(holes[:3])}); "
            "wait for the missing ranks or keep an older step",
            step=step, ranks=len(records), world_size=world_size,
        )  # fmt: skip
    packs = _all_packs(records)
    _check_stored(store, place, records, packs, concurrency=concurrency)
    prepare_root(store)
    manifest = Manifest(
        version=max(r.version for r in records),
        run_id=run_id, step=step, generation=generation, world_size=world_size, coverage=coverage,
        ranks=tuple(
            RankRef(w.rank, w.digest, w.size, r.index)
            for w, r in zip(ordered, records, strict=True)
        ),
        packs=packs,
        raw_bytes=sum(r.raw_bytes for r in records),
        stored_bytes=sum(r.stored_bytes for r in records),
    )  # fmt: skip
    data = to_json(manifest)
    digest = blake3_hex(data)
    key = place.manifest_key(digest)
    store.put(key, data)
    return Sealed(step, key, digest, coverage, manifest.raw_bytes, manifest.stored_bytes, holes)


def seal_again(
    store: Store, run_id: str, manifest_key: str, digest: str, late: Sequence[WrittenRank], *,
    concurrency: int = 1,
) -> Sealed:  # fmt: skip
    """Seal a partial (or degraded) step anew, now that records of more ranks have arrived.

    The new manifest has another hash, hence another key; the old one stays. Nothing protects a
    partial step from a collection: commit with the ``since`` of the save that began it.

    Args:
        store: Where the ranks wrote.
        run_id: Whose step it is.
        manifest_key: Of the earlier seal.
        digest: Its blake3.
        late: What ``write_rank`` returned to the late ranks; ranks it has already are left out.
        concurrency: Size questions to the store at a time.

    Returns:
        The new seal; its coverage says whether it may be committed.

    Raises:
        Corrupt: The manifest is damaged, a record does not belong here, or an object is missing.
        Unavailable, Denied, Exhausted: As the store reported; call again.
    """
    place = parse_manifest_key(run_id, manifest_key, digest)
    data = fetch_verified(store, manifest_key, digest)
    manifest = parse_document(data, Manifest, manifest_key)
    world = manifest.world_size
    early = {
        ref.rank: WrittenRank(
            rank=ref.rank, record_key=place.record_key(ref.rank, world, ref.blake3),
            digest=ref.blake3, size=ref.size, raw_bytes=0, stored_bytes=0, new_bytes=0,
        )
        for ref in manifest.ranks
    }  # fmt: skip
    return seal(
        store, run_id, place.step, generation=place.generation, world_size=world,
        written=[*early.values(), *(rank for rank in late if rank.rank not in early)],
        partial="keep", concurrency=concurrency,
    )  # fmt: skip


def _read_back(store: Store, place: StepDir, world_size: int, written: WrittenRank) -> RankRecord:
    key = place.record_key(written.rank, world_size, written.digest)
    if key != written.record_key:
        raise Corrupt(
            f"{written.record_key[:200]} is not of step {place.step}, generation "
            f"{place.generation}, {world_size} ranks; never mix shards of different steps"
        )
    record = parse_document(
        fetch_verified(store, key, written.digest, written.size), RankRecord, key
    )
    check_belongs(record, place, world_size, written.rank)
    return record


def check_belongs(record: RankRecord, place: StepDir, world_size: int, rank: int) -> None:
    """Refuse a record that says it is of another step, writer or rank.

    Raises:
        Corrupt: It does.
    """
    said = (record.run_id, record.step, record.generation, record.world_size, record.rank)
    if said != (*place, world_size, rank):
        raise Corrupt(
            f"rank record says {said} but stands at {(*place, world_size, rank)}; use another step"
        )


def judge(records: Sequence[RankRecord], world_size: int) -> tuple[Coverage, tuple[str, ...]]:
    """Whether records cover every tensor, and which tensors have holes. Pure.

    Raises:
        Corrupt: Two records disagree on a tensor's dtype or shape.
    """
    specs = catalog(records)
    regions: dict[str, list[Region]] = {name: [] for name in specs}
    for record in records:
        for box in record.boxes:
            regions[box.name].append(box.region)
    holes = [n for n, spec in specs.items() if not covers(regions[n], whole(spec.global_shape))]
    missing = world_size - len(records)
    if missing and not all(record.catalog for record in records):
        holes.append(f"whatever the {missing} missing ranks held")
    if holes:
        return "partial", tuple(holes)
    return ("degraded" if missing else "complete"), ()


def catalog(records: Iterable[RankRecord]) -> dict[str, TensorSpec]:
    """Every tensor that the records name, by name.

    Raises:
        Corrupt: Two records disagree on a tensor's dtype or shape.
    """
    found: dict[str, TensorSpec] = {}
    for record in records:
        boxes = (TensorSpec(b.name, b.dtype, b.global_shape) for b in record.boxes)
        for spec in (*boxes, *record.catalog):
            if (earlier := found.setdefault(spec.name, spec)) != spec:
                raise Corrupt(
                    f"'{spec.name}' is {earlier.dtype}{earlier.global_shape} on one rank and "
                    f"{spec.dtype}{spec.global_shape} on another; give them two names"
                )
    return found


def _all_packs(records: Iterable[RankRecord]) -> tuple[ObjectRef, ...]:
    return tuple(sorted({p for r in records for p in r.packs}, key=lambda p: p.blake3))


def _check_stored(
    store: Store, place: StepDir, records: Sequence[RankRecord], packs: Sequence[ObjectRef], *,
    concurrency: int,
) -> None:  # fmt: skip
    """Everything the manifest will lead to is there, in full length."""
    expected = {pack_key(pack.blake3): pack.size for pack in packs}
    for r in records:
        expected[place.index_key(r.rank, r.world_size, r.index.blake3)] = r.index.size
    sizes = fan_out(store.size, expected, concurrency)
    for (key, size), found in zip(expected.items(), sizes, strict=True):
        if found != size:
            raise Corrupt(
                f"{store.url}/{key} has {found} bytes instead of {size}; save this step again",
                key=key,
            )
