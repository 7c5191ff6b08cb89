"""What every store must do, as test classes: ours pass them, and a user's own adapter can try.

A test module inherits from a class here and provides a pytest fixture ``store``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest

from cloudshift_lab.core.errors import Conflict, Corrupt, Fenced, NotFound, UsageError
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.log import LogBase, LogRecord, RunLog, log_key
from cloudshift_lab.storage.store import MAX_CREATE_BYTES, Store, probe_store

Result = TypeVar("Result")


def at_once(calls: list[Callable[[], Result]]) -> list[Result]:
    """Run all calls in threads that a barrier lets go together."""
    barrier = threading.Barrier(len(calls))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(index: int, call: Callable[[], Result]) -> None:
        barrier.wait()
        try:
            results[index] = call()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(calls))]


class StoreContract:
    """Objects: whole or absent, ranges, listing, and a create that only one can win."""

    def test_what_was_put_is_what_is_read(self, store: Store) -> None:
        data = bytes(range(256)) * 41
        store.put("contract/put.bin", data)
        assert store.get("contract/put.bin") == data
        assert store.size("contract/put.bin") == len(data)

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("contract/empty", b"")
        assert store.get("contract/empty") == b""
        assert store.size("contract/empty") == 0

    def test_put_replaces(self, store: Store) -> None:
        store.put("contract/replaced", b"old and longer")
        store.put("contract/replaced", b"new")
        assert store.get("contract/replaced") == b"new"

    def test_a_missing_object_is_not_found_and_has_no_size(self, store: Store) -> None:
        with pytest.raises(NotFound, match="contract/missing"):
            store.get("contract/missing")
        with pytest.raises(NotFound):
            store.get("contract/missing", start=0, end=4)
        assert store.size("contract/missing") is None

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 4, b"0123"),
            (3, 5, b"34"),
            (None, 3, b"012"),
            (7, None, b"789"),
            (8, 99, b"89"),
            (10, 12, b""),
            (50, 60, b""),
            (4, 4, b""),
        ],
    )
    def test_a_range_is_half_open_and_ends_with_the_object(
        self, store: Store, start: int | None, end: int | None, expected: bytes
    ) -> None:
        store.put("contract/range", b"0123456789")
        assert store.get("contract/range", start=start, end=end) == expected

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4), (None, -3)])
    def test_an_impossible_range_is_refused(
        self, store: Store, start: int | None, end: int | None
    ) -> None:
        store.put("contract/range", b"0123456789")
        with pytest.raises(UsageError):
            store.get("contract/range", start=start, end=end)

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/a", "a b", "ä"]
    )
    def test_a_key_that_not_every_store_can_hold_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(UsageError):
            store.put(key, b"x")
        with pytest.raises(UsageError):
            store.create(key, b"x")

    def test_a_listing_holds_whole_keys_below_one_folder_only(self, store: Store) -> None:
        for key in ("listed/a", "listed/b/c", "listed-not/d"):
            store.put(key, b"x")
        assert store.list("listed") == ["listed/a", "listed/b/c"]
        assert store.list("listed/") == store.list("listed")
        assert store.list("nothing-here") == []
        assert {"listed/a", "listed-not/d"} <= set(store.list(""))

    def test_a_deleted_object_is_gone_and_deleting_twice_is_fine(self, store: Store) -> None:
        store.put("contract/deleted", b"x")
        store.delete("contract/deleted")
        store.delete("contract/deleted")
        assert store.size("contract/deleted") is None
        assert "contract/deleted" not in store.list("contract")

    def test_many_come_back_in_the_order_asked(self, store: Store) -> None:
        objects = {f"many/{n}": bytes([n]) * (n + 1) for n in range(9)}
        store.put_many(objects, concurrency=3)
        requests = [(key, 0, 2) for key in reversed(objects)]
        assert list(store.get_many(requests, concurrency=3)) == [
            objects[key][:2] for key in reversed(objects)
        ]

    def test_each_comes_back_with_its_number(self, store: Store) -> None:
        objects = {f"each/{n}": bytes([n]) * (n + 1) for n in range(9)}
        store.put_many(objects, concurrency=3)
        requests = [(key, 0, 2) for key in reversed(objects)]
        found = dict(store.get_each(requests, concurrency=3))
        assert [found[n] for n in range(9)] == [objects[key][:2] for key in reversed(objects)]

    def test_one_missing_among_many_is_not_found(self, store: Store) -> None:
        store.put("many/there", b"x")
        requests = [("many/there", None, None), ("many/not-there", None, None)]
        with pytest.raises(NotFound):
            store.get_many(requests)
        with pytest.raises(NotFound):
            list(store.get_each(requests))

    def test_only_the_first_create_wins_and_its_bytes_stay(self, store: Store) -> None:
        key = f"created/{REAL_WORLD.new_id('key')}"
        assert store.create(key, b"first, nonce 1")
        assert not store.create(key, b"second, nonce 2")
        assert store.get(key) == b"first, nonce 1"

    def test_creating_ones_own_bytes_again_still_counts_as_won(self, store: Store) -> None:
        key = f"created/{REAL_WORLD.new_id('key')}"
        assert store.create(key, b"mine, nonce 1")
        assert store.create(key, b"mine, nonce 1")

    def test_create_does_not_replace_what_was_put(self, store: Store) -> None:
        store.put("created/put-before", b"put")
        assert not store.create("created/put-before", b"created")

    def test_create_is_for_small_objects(self, store: Store) -> None:
        with pytest.raises(UsageError, match="less than"):
            store.create("created/too-large", bytes(MAX_CREATE_BYTES))

    def test_one_of_eight_racing_threads_wins_each_create(self, store: Store) -> None:
        for round_number in range(10):
            key = f"raced/{REAL_WORLD.new_id('key')}-{round_number}"
            bodies = [f"nonce-{n}".encode() for n in range(8)]
            won = at_once([partial(store.create, key, body) for body in bodies])
            assert won.count(True) == 1
            assert store.get(key) == bodies[won.index(True)]

    def test_the_probe_accepts_it_and_leaves_nothing_behind(self, store: Store) -> None:
        probe_store(store)
        assert store.list("probe") == []

    def test_neither_its_url_nor_its_repr_holds_an_option(self, store: Store) -> None:
        assert store.url == store.url.rstrip("/")
        assert "secret" not in repr(store)


class LogContract:
    """The run log: one order, one owner, nothing from a fenced one."""

    def open_log(self, store: Store, run_id: str) -> RunLog:
        """One more party's own view of the log; override to vary the world or deadline."""
        return RunLog(store, run_id)

    def fresh(self, store: Store) -> tuple[str, RunLog]:
        """A run nobody has used, owned by ``a`` at generation 1."""
        run_id = REAL_WORLD.new_id("run")
        log = self.open_log(store, run_id)
        log.acquire(generation=1, owner="a", nonce="acquire-a")
        return run_id, log

    def commit(self, log: RunLog, generation: int, step: int, nonce: str = "") -> LogRecord:
        """Commit a made-up manifest."""
        return log.commit(
            generation=generation,
            step=step,
            manifest_key=f"steps/{step}",
            manifest_digest="d" * 64,
            nonce=nonce or REAL_WORLD.new_id("nonce"),
        )

    def test_an_empty_log_has_no_owner(self, store: Store) -> None:
        state = self.open_log(store, REAL_WORLD.new_id("run")).sync()
        assert (state.generation, state.owner, state.next_seq) == (0, None, 0)
        assert state.last_commit is None

    def test_commits_are_read_by_others_in_order(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        for step in (10, 20, 30):
            self.commit(log, 1, step)
        state = self.open_log(store, run_id).sync()
        assert [record.step for record in state.commits] == [10, 20, 30]
        assert [record.seq for record in state.records] == [0, 1, 2, 3]
        assert state.last_commit == state.commits[-1]

    def test_nobody_commits_without_owning(self, store: Store) -> None:
        log = self.open_log(store, REAL_WORLD.new_id("run"))
        with pytest.raises(Fenced):
            self.commit(log, 1, 10)

    def test_a_newer_generation_fences_the_older(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        self.open_log(store, run_id).acquire(generation=2, owner="b", nonce="acquire-b")
        with pytest.raises(Fenced, match="generation 2"):
            self.commit(log, 1, 10)
        with pytest.raises(Fenced):
            log.release(generation=1, nonce="release-a")
        assert log.sync().commits == ()

    @pytest.mark.parametrize("generation", [1, 2])
    def test_an_equal_or_older_generation_cannot_be_taken(
        self, store: Store, generation: int
    ) -> None:
        _, log = self.fresh(store)
        log.acquire(generation=2, owner="b", nonce="acquire-b")
        with pytest.raises(Fenced):
            log.acquire(generation=generation, owner="c", nonce="acquire-c")

    def test_asking_again_with_the_same_nonce_changes_nothing(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        first = self.commit(log, 1, 10, "commit-1")
        again = self.commit(self.open_log(store, run_id), 1, 10, "commit-1")
        assert again == first
        assert len(log.sync().commits) == 1

    def test_the_same_owner_may_acquire_again(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        again = self.open_log(store, run_id).acquire(generation=1, owner="a", nonce="restarted")
        assert again.seq == 0
        assert log.sync().next_seq == 1

    def test_a_released_run_takes_no_commit_until_it_is_acquired(self, store: Store) -> None:
        _, log = self.fresh(store)
        first = log.release(generation=1, nonce="release")
        assert log.release(generation=1, nonce="release again") == first
        with pytest.raises(Fenced):
            self.commit(log, 1, 10)
        log.acquire(generation=2, owner="b", nonce="acquire-b")
        assert self.commit(log, 2, 10).owner == "b"

    def test_a_handover_fences_the_giver_and_admits_only_the_named_owner(
        self, store: Store
    ) -> None:
        _, log = self.fresh(store)
        given = self.give(log, store.url, "move-1")
        assert (given.generation, given.owner) == (2, "b")
        assert log.sync().home_url == store.url
        with pytest.raises(Fenced):
            self.commit(log, 1, 10)
        with pytest.raises(Fenced):
            self.commit(log, 2, 10)
        for generation, owner in ((1, "a"), (2, "c"), (3, "b")):
            with pytest.raises(Fenced):
                log.acquire(generation=generation, owner=owner, nonce=f"{owner}{generation}")
        log.acquire(generation=2, owner="b", nonce="acquire-b")
        assert log.sync().home_url is None
        assert self.commit(log, 2, 10).seq == 3

    def give(self, log: RunLog, to_url: str, migration: str, generation: int = 1) -> LogRecord:
        """Hand the run to ``b``."""
        return log.handover(
            generation=generation,
            to_url=to_url,
            new_owner="b",
            migration_id=migration,
            nonce=f"{migration}:commit",
        )

    def test_a_handover_elsewhere_closes_the_log_until_it_comes_back(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        self.give(log, "s3://elsewhere/lab/", "move-1")
        assert log.sync().home_url == "s3://elsewhere/lab"
        with pytest.raises(Fenced, match="elsewhere"):
            log.acquire(generation=3, owner="a", nonce="zombie")
        with pytest.raises(Fenced):
            log.acquire(generation=2, owner="b", nonce="wrong place")
        base = LogBase(url="s3://elsewhere/lab", seq=7, digest="d" * 64)
        back = log.acquire(generation=3, owner="a", nonce="back", base=base)
        assert self.open_log(store, run_id).sync().records[-1] == back
        assert back.base == base

    def test_a_cancelled_move_can_never_be_handed_over(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        other = self.open_log(store, run_id)
        first = other.cancel(generation=1, migration_id="move-1", nonce="move-1:cancel")
        assert other.cancel(generation=1, migration_id="move-1", nonce="again") == first
        with pytest.raises(Conflict, match="cancelled") as caught:
            self.give(log, store.url, "move-1")
        assert not isinstance(caught.value, Fenced)
        assert self.give(log, store.url, "move-2").generation == 2

    def test_a_move_that_happened_cannot_be_cancelled(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        given = self.give(log, store.url, "move-1")
        with pytest.raises(Fenced, match="already happened"):
            self.open_log(store, run_id).cancel(
                generation=1, migration_id="move-1", nonce="move-1:cancel"
            )
        assert self.give(log, store.url, "move-1") == given

    def test_of_a_handover_and_a_cancel_at_once_exactly_one_wins(self, store: Store) -> None:
        for _ in range(5):
            run_id, _ = self.fresh(store)

            def give(run_id: str = run_id) -> bool:
                try:
                    self.give(self.open_log(store, run_id), store.url, "move")
                except Conflict:
                    return False
                return True

            def cancel(run_id: str = run_id) -> bool:
                try:
                    self.open_log(store, run_id).cancel(
                        generation=1, migration_id="move", nonce="move:cancel"
                    )
                except Fenced:
                    return False
                return True

            assert sorted(at_once([give, cancel])) == [False, True]

    def test_owners_racing_for_one_generation_leave_one(self, store: Store) -> None:
        run_id = REAL_WORLD.new_id("run")

        def acquire(owner: str) -> bool:
            try:
                self.open_log(store, run_id).acquire(generation=1, owner=owner, nonce=owner)
            except Fenced:
                return False
            return True

        won = at_once([partial(acquire, owner) for owner in "abcdef"])
        state = self.open_log(store, run_id).sync()
        assert won.count(True) == 1
        assert state.owner == "abcdef"[won.index(True)]
        assert state.next_seq == 1

    def test_two_committers_of_one_generation_leave_one_commit(self, store: Store) -> None:
        """A saver that was taken for dead and its successor, with different manifests."""
        for _ in range(3):
            run_id, _ = self.fresh(store)

            def publish(digit: str, run_id: str = run_id) -> bool:
                try:
                    self.open_log(store, run_id).commit(
                        generation=1, step=10, manifest_key=digit,
                        manifest_digest=digit * 64, nonce=digit,
                    )  # fmt: skip
                except Fenced:
                    return False
                return True

            won = at_once([partial(publish, digit) for digit in "abc"])
            commits = self.open_log(store, run_id).sync().commits
            assert won.count(True) == 1
            assert [c.manifest_key for c in commits] == ["abc"[won.index(True)]]

    def test_a_commit_that_races_a_takeover_is_before_it_or_fenced(self, store: Store) -> None:
        for _ in range(3):
            run_id, log = self.fresh(store)
            self.commit(log, 1, 10)

            def publish(run_id: str = run_id) -> bool:
                try:
                    self.commit(self.open_log(store, run_id), 1, 20)
                except Fenced:
                    return False
                return True

            def take_over(run_id: str = run_id) -> bool:
                other = self.open_log(store, run_id)
                other.acquire(generation=2, owner="b", nonce="acquire-b")
                return True

            won, _ = at_once([publish, take_over])
            kinds = [r.kind for r in log.sync().records]
            with_it = ["acquire", "commit", "commit", "acquire"]
            assert kinds == (with_it if won else ["acquire", "commit", "acquire"])

    def test_forgotten_steps_exist_no_longer_and_the_newest_stays(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        for step in (10, 20, 30):
            self.commit(log, 1, step)
        other = self.open_log(store, run_id)
        assert other.forget(steps=[10, 30, 99], nonce="forget-1") == (10,)
        assert other.forget(steps=[10, 30, 99], nonce="forget-1") == (10,)
        assert other.forget(steps=[10], nonce="forget-2") == ()
        state = log.sync()
        assert [commit.step for commit in state.commits] == [20, 30]
        assert (state.owner, state.generation, state.next_seq) == ("a", 1, 5)
        with pytest.raises(Fenced):
            self.commit(log, 1, 10)

    def test_a_sweep_refuses_the_saves_that_began_before_it(self, store: Store) -> None:
        run_id, log = self.fresh(store)
        began = log.sync().next_seq
        state = self.open_log(store, run_id).sweep(collection="gc-1", nonce="sweep-1")
        assert state.sweeps == (began,)

        def publish(since: int) -> LogRecord:
            return log.commit(
                generation=1, step=10, manifest_key="m", manifest_digest="d" * 64, nonce="n",
                since=since,
            )  # fmt: skip

        with pytest.raises(Conflict, match="save it again") as caught:
            publish(began)
        assert not isinstance(caught.value, Fenced)
        assert publish(log.sync().next_seq).seq == 2
        assert log.release(generation=1, nonce="release").seq == 3

    def test_a_run_that_is_arriving_is_not_taken_before_its_step_is_there(
        self, store: Store
    ) -> None:
        run_id = REAL_WORLD.new_id("run")
        log = self.open_log(store, run_id)
        base = LogBase(url="s3://elsewhere/lab", seq=7, digest="d" * 64)
        log.acquire(generation=2, owner="b", nonce="arrive", base=base)
        with pytest.raises(Conflict, match="let the conductor finish"):
            self.open_log(store, run_id).acquire(generation=3, owner="c", nonce="early")
        self.commit(log, 2, 10)
        assert self.open_log(store, run_id).acquire(generation=3, owner="c", nonce="now").seq == 2

    def test_a_damaged_record_is_reported_and_not_skipped(self, store: Store) -> None:
        run_id, _ = self.fresh(store)
        store.put(log_key(run_id, 1), b'{"seq": 1, "kind"')
        with pytest.raises(Corrupt, match="log/000000000001"):
            self.open_log(store, run_id).sync()
