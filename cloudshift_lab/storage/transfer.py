"""Bring objects from one store to another: verified, resumable, under a budget, never idle."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.errands import DoneByThreads, DoneHere, Errands, Runner
from cloudshift_lab.storage.sending import (
    Keys,
    Sending,
    TransferOptions,
    TransferProgress,
    TransferReport,
)
from cloudshift_lab.storage.store import Store

__all__ = [
    "TransferOptions", "TransferProgress", "TransferReport", "transfer", "transfer_steps",
]  # fmt: skip


def transfer(
    source: Store,
    target: Store,
    keys: Keys,
    *,
    then: Sequence[Keys] = (),
    sizes: Mapping[str, int] | None = None,
    options: TransferOptions | None = None,
    world: World = REAL_WORLD,
    progress: Callable[[TransferProgress], None] | None = None,
) -> TransferReport:
    """Copy ``keys``; an object that the target has in the same size is skipped.

    What is written stays: called again after any interruption it goes on from there.

    Args:
        source: Where to read.
        target: Where to write, under the same keys.
        keys: Key to its expected blake3 (hex), or None: then a pack is checked against its name
            and anything else only against its size.
        then: More keys; none of a group is written before all of the groups before it are.
        sizes: Bytes of the source's objects where they are known: it is not asked for these.
        options: Limits.
        world: Clock, sleep and jitter.
        progress: Called in this thread, at least twice a second while requests are under way. What
            it raises ends the transfer.

    Raises:
        NotFound: The source lacks a key; names it.
        Corrupt: An object differs from its hash at every reading; nothing of it was written.
        Exhausted: It would cost more than ``max_bytes`` (then nothing was read), has cost them, or
            did not end within ``deadline_s``.
        Unavailable: No request was answered for ``patience_s``.
        Denied, Exhausted: As a store reported.
    """
    steps = transfer_steps(
        source, target, keys, then=then, sizes=sizes, options=options, world=world
    )
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                report: TransferReport = end.value
                return report
            if progress is not None:
                progress(step)


def transfer_steps(
    source: Store,
    target: Store,
    keys: Keys,
    *,
    then: Sequence[Keys] = (),
    sizes: Mapping[str, int] | None = None,
    options: TransferOptions | None = None,
    world: World = REAL_WORLD,
) -> Generator[TransferProgress, None, TransferReport]:
    """``transfer`` for callers with other things to do: each step takes at most half a second.

    Requests go on between steps, but new ones begin in steps only. Closing the generator ends
    the transfer; objects on their way to the target still arrive.
    """
    limits = options or TransferOptions()
    errands = Errands(source, target, dict(sizes or {}))
    runner: Runner = (
        DoneHere(errands, world)
        if limits.concurrency <= 1
        else DoneByThreads(errands, world, limits.concurrency)
    )
    work = Sending((keys, *then), limits, world, runner, source.url)
    try:
        return (yield from work.run())
    finally:
        runner.close()
