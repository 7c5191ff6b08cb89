"""The run log: ownership and commits in one total order, built on create-if-absent alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from cloudshift_lab.core.errors import Conflict, Corrupt, Fenced, NotFound, Unavailable, UsageError
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.logstate import (
    LogBase,
    LogRecord,
    LogState,
    fold,
    log_key,
    pointer_in,
)
from cloudshift_lab.storage.store import DEADLINE_S, Store

__all__ = ["LogBase", "LogRecord", "LogState", "RunLog", "fold", "log_key"]
_LONGEST_PAUSE_S = 1.0
_ALONE = 8
_LARGEST_BATCH = 256
_ANYBODYS = ("forget", "sweep")
_NOTHING = LogRecord(seq=-1, kind="forget", generation=0, owner="", nonce="", at=0.0)


class RunLog:
    """One party's view of a run's log in one store; not for several threads at once.

    Args:
        store: Where the log is.
        run_id: Whose log.
        world: Clock and jitter.
        deadline_s: How long one append goes on trying, seconds, on top of the store's own limit.
    """

    def __init__(
        self, store: Store, run_id: str, world: World = REAL_WORLD, deadline_s: float = DEADLINE_S
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._world = world
        self._deadline_s = deadline_s
        self._records: list[LogRecord] = []

    def sync(self) -> LogState:
        """Read every record not seen yet, up to the first key that does not exist.

        Raises:
            Corrupt: A record does not parse or stands at the wrong place.
            Unavailable, Denied: As the store reported.
        """
        alone = 0
        while (record := self._read(len(self._records))) is not None:
            self._records.append(record)
            alone += 1
            if alone == _ALONE:
                self._read_ahead()
        return fold(self._records)

    def acquire(
        self, *, generation: int, owner: str, nonce: str, base: LogBase | None = None
    ) -> LogRecord:
        """Own the run from now on; the same owner at the same generation may ask again.

        Args:
            generation: Greater than any the log has seen, or exactly the one handed over to us.
            owner: Who we are.
            nonce: Identifies this request across retries and restarts.
            base: The handover record in another store's log that sends the run here.

        Raises:
            Fenced: A newer owner has the run, or it went on in another store.
            Conflict: The run is arriving here: an owner now would begin without its newest step.
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            if (held := _held_by(state, generation, owner)) is not None:
                return held
            self._check_acquire(state, generation, owner, base)
            return LogRecord(
                seq=state.next_seq, kind="acquire", generation=generation, owner=owner,
                nonce=nonce, at=at, base=base,
            )  # fmt: skip

        return self._append(nonce, draft)

    def commit(
        self, *, generation: int, step: int, manifest_key: str, manifest_digest: str, nonce: str,
        final: bool = False, since: int | None = None,
    ) -> LogRecord:  # fmt: skip
        """Make a step exist; the newest one may be committed again.

        Invariant: steps never go back; only a newer generation, which began from the newest step,
        may commit it with another manifest.

        Args:
            generation: Ours.
            step: What shall exist.
            manifest_key: Of the sealed step.
            manifest_digest: Its blake3.
            nonce: Identifies this request across retries and restarts.
            final: Whether no step follows in this attempt.
            since: ``sync().next_seq`` before the save read the tombstones (``checkpoint.gc``): a
                sweep after it may delete what the save uses. None: nothing of it can be swept.

        Raises:
            Fenced: We are not the owner any more, or behind the newest step; nothing was published.
            Conflict: The store is being swept since the save began: read the tombstones again and
                save again, which writes what is to be deleted anew.
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            owner = self._check_owner(state, generation)
            if (last := state.last_commit) is not None:
                named = (last.generation, last.step, last.manifest_digest)
                if named == (generation, step, manifest_digest):
                    return last
                if (step, generation) <= (last.step or 0, last.generation):
                    raise self._goes_back(last, generation, step)
            if since is not None and any(seq >= since for seq in state.sweeps):
                raise Conflict(
                    f"{self._store.url} was swept while step {step} of run {self._run_id} was "
                    "being saved, which may need what was deleted; save it again",
                    run=self._run_id, step=step,
                )  # fmt: skip
            return LogRecord(
                seq=state.next_seq, kind="commit", generation=generation, owner=owner, nonce=nonce,
                at=at, step=step, manifest_key=manifest_key, manifest_digest=manifest_digest,
                final=final,
            )  # fmt: skip

        return self._append(nonce, draft)

    def handover(
        self, *, generation: int, to_url: str, new_owner: str, migration_id: str, nonce: str,
        sealed: tuple[int, str] | None = None,
    ) -> LogRecord:  # fmt: skip
        """Give the run away; the record carries ``generation + 1`` and fences us from there on.

        Args:
            generation: Ours.
            to_url: The store that the run goes on in.
            new_owner: Who alone may acquire it there.
            migration_id: The move.
            nonce: Identifies this request across retries and restarts.
            sealed: Step and manifest digest that must be the newest commit at the very place of
                this record; None: not asked.

        Raises:
            Conflict: This migration was cancelled first, or another step is the newest.
            Fenced: ``generation`` is not the owner's any more.
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            if (landed := state.handover_of(migration_id)) is not None:
                return landed
            if migration_id in state.cancelled:
                raise Conflict(
                    f"move {migration_id} was cancelled, so run {self._run_id} stays where it is; "
                    "start a new move",
                    migration=migration_id,
                )
            self._check_owner(state, generation)
            self._check_sealed(state, sealed)
            return LogRecord(
                seq=state.next_seq, kind="handover", generation=generation + 1, owner=new_owner,
                nonce=nonce, at=at, to_url=to_url.rstrip("/"), migration_id=migration_id,
            )  # fmt: skip

        return self._append(nonce, draft)

    def cancel(self, *, generation: int, migration_id: str, nonce: str) -> LogRecord:
        """Make sure that a migration's handover can never land any more.

        Args:
            generation: Of the source; kept for the record, a newer one changes nothing.
            migration_id: What is called off.
            nonce: Identifies this request across retries and restarts.

        Raises:
            Fenced: The handover landed first: the move has happened, go forward.
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            if (landed := state.handover_of(migration_id)) is not None:
                raise Fenced(
                    f"move {migration_id} already happened (log record {landed.seq}), it cannot be "
                    "cancelled; let it finish",
                    migration=migration_id, seq=landed.seq,
                )  # fmt: skip
            earlier = (r for r in state.records if r.kind == "cancel")
            for record in earlier:
                if record.migration_id == migration_id:
                    return record
            return LogRecord(
                seq=state.next_seq, kind="cancel", generation=max(generation, state.generation),
                owner=state.owner or "", nonce=nonce, at=at, migration_id=migration_id,
            )  # fmt: skip

        return self._append(nonce, draft)

    def release(self, *, generation: int, nonce: str) -> LogRecord:
        """Stop owning the run, at its end.

        Raises:
            Fenced: We are not the owner any more.
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            last = next((r for r in reversed(state.records) if r.kind not in _ANYBODYS), None)
            if last and last.kind == "release" and last.generation == generation:
                return last
            owner = self._check_owner(state, generation)
            return LogRecord(
                seq=state.next_seq, kind="release", generation=generation, owner=owner,
                nonce=nonce, at=at,
            )  # fmt: skip

        return self._append(nonce, draft)

    def forget(self, *, steps: Collection[int], nonce: str) -> tuple[int, ...]:
        """Make committed steps exist no longer; anybody may, the owner need not be asked.

        The newest commit stays whatever is asked for. Their objects are for ``checkpoint.gc``.

        Args:
            steps: Which; those that do not exist (any more) are left out.
            nonce: Identifies this request across retries and restarts.

        Returns:
            The steps that this record made forgotten; empty when there was nothing to do.

        Raises:
            Unavailable: No answer in time; ask again with the same nonce.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            newest = state.last_commit
            found = {c.step for c in state.commits if c.step is not None and c.step in steps}
            gone = tuple(sorted(found - {newest.step} if newest else found))
            if not gone:
                return _NOTHING
            return LogRecord(
                seq=state.next_seq, kind="forget", generation=state.generation,
                owner=state.owner or "", nonce=nonce, at=at, steps=gone,
            )  # fmt: skip

        return self._append(nonce, draft).steps

    def sweep(self, *, collection: str, nonce: str) -> LogState:
        """Announce a deletion to whoever is saving: saves begun before this record cannot commit.

        Returns:
            What the log says at this record: every commit that can still need what is deleted.

        Raises:
            Unavailable: No answer in time: nothing may be deleted.
        """

        def draft(state: LogState, at: float) -> LogRecord:
            return LogRecord(
                seq=state.next_seq, kind="sweep", generation=state.generation,
                owner=state.owner or "", nonce=nonce, at=at, collection=collection,
            )  # fmt: skip

        self._append(nonce, draft)
        return fold(self._records)

    def _check_sealed(self, state: LogState, sealed: tuple[int, str] | None) -> None:
        newest = state.last_commit
        found = None if newest is None else (newest.step, newest.manifest_digest)
        if sealed is not None and found != sealed:
            raise Conflict(
                f"run {self._run_id}'s newest checkpoint is step {found and found[0]}, not "
                f"the sealed step {sealed[0]}; the run stays where it is, propose the move again",
                step=sealed[0],
            )

    def _read_ahead(self) -> None:
        """Read most of a long log in batches: no record exists unless all before it do."""
        batch, growing = 2 * _ALONE, True
        while batch >= _ALONE:
            keys = [log_key(self._run_id, len(self._records) + n) for n in range(batch)]
            if self._store.size(keys[-1]) is None:
                batch, growing = batch // 2, False
                continue
            for body in self._read_dense(keys):
                self._records.append(self._parse(len(self._records), body))
            batch = min(2 * batch, _LARGEST_BATCH) if growing else batch

    def _read_dense(self, keys: Sequence[str]) -> Sequence[bytes]:
        try:
            return self._store.get_many([(key, None, None) for key in keys])
        except NotFound as error:
            raise Corrupt(
                f"the log of run {self._run_id} in {self._store.url} has a hole ({error.message}); "
                "restore the missing record from a copy",
                run=self._run_id,
            ) from error

    def _read(self, seq: int) -> LogRecord | None:
        try:
            data = self._store.get(log_key(self._run_id, seq))
        except NotFound:
            return None
        return self._parse(seq, data)

    def _parse(self, seq: int, data: bytes) -> LogRecord:
        key = log_key(self._run_id, seq)
        if (pointer := pointer_in(data)) is not None:
            raise UsageError(
                f"the log of run {self._run_id} is kept at {pointer.log_url}, not in "
                f"{self._store.url}; open the store by its cloud, with log_url set to that",
                run=self._run_id,
            )
        record = from_json(data, LogRecord, what=f"{self._store.url}/{key}")
        if record.seq != seq or record.check not in ("", record.stamp):
            raise Corrupt(
                f"{self._store.url}/{key} is damaged or not record {seq}; restore it from a copy",
                key=key,
            )
        return record

    def _append(self, nonce: str, draft: Callable[[LogState, float], LogRecord]) -> LogRecord:
        """Write the next record exactly once, however often requests or answers get lost.

        Invariant: before every create, all records before it were read, and none has our nonce.
        """
        at = self._world.now()
        until = self._world.monotonic() + self._deadline_s
        pause_s = 0.05
        while True:
            try:
                record = self._try_append(nonce, draft, at)
            except Unavailable as error:
                if self._world.monotonic() + pause_s >= until:
                    raise Unavailable(
                        f"{self._store.url} did not answer within {self._deadline_s:.0f} s, so it "
                        f"is unknown whether run {self._run_id}'s log has our record; check the "
                        "store, then ask again",
                        url=self._store.url,
                    ) from error
                self._world.sleep(pause_s * self._world.random())
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            if record is not None:
                return record

    def _try_append(
        self, nonce: str, draft: Callable[[LogState, float], LogRecord], at: float
    ) -> LogRecord | None:
        """One attempt; None when somebody else took the place."""
        state = self.sync()
        if (landed := state.by_nonce(nonce)) is not None:
            return landed
        record = draft(state, at)
        if record.seq < state.next_seq:
            return record
        record = msgspec.structs.replace(record, check=record.stamp)
        if not self._store.create(log_key(self._run_id, record.seq), to_json(record)):
            return None
        self._records.append(record)
        return record

    def _check_owner(self, state: LogState, generation: int) -> str:
        if state.home_url is not None or state.owner is None or state.generation != generation:
            raise self._fenced(state, generation)
        return state.owner

    def _goes_back(self, last: LogRecord, generation: int, step: int) -> Fenced:
        return Fenced(
            f"run {self._run_id} has committed step {last.step} already, so generation "
            f"{generation} must not commit another step {step}; stop it, then resume the run",
            run=self._run_id, generation=generation, step=step, committed=last.step,
        )  # fmt: skip

    def _check_acquire(
        self, state: LogState, generation: int, owner: str, base: LogBase | None
    ) -> None:
        if state.home_url == self._store.url:
            if (generation, owner) != (state.generation, state.owner):
                raise self._fenced(state, generation)
        elif generation <= state.generation or (state.home_url is not None and base is None):
            raise self._fenced(state, generation)
        elif state.awaits_step and base is None:
            raise Conflict(
                f"run {self._run_id} has just moved here and the step it continues from has not "
                "been committed yet; let the conductor finish the move, then resume",
                run=self._run_id, generation=generation,
            )  # fmt: skip

    def _fenced(self, state: LogState, generation: int) -> Fenced:
        where = f" in {state.home_url}" if state.home_url else ""
        return Fenced(
            f"run {self._run_id} is at generation {state.generation}{where}, owner "
            f"{state.owner or 'nobody'}; generation {generation} must stop",
            run=self._run_id, generation=generation, current=state.generation,
        )  # fmt: skip


def _held_by(state: LogState, generation: int, owner: str) -> LogRecord | None:
    """The acquire by which this very owner holds the run already."""
    if state.home_url is not None or (state.generation, state.owner) != (generation, owner):
        return None
    acquired = (r for r in reversed(state.records) if r.kind == "acquire")
    return next(acquired, None)
