"""Which stored steps stay, as people say it: pinned, unpinned, forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from cloudshift_lab.checkpoint.pins import list_pins, pin, pin_key, unpin
from cloudshift_lab.conductor.jobs import Task, Work
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.errors import Conflict, NotFound, UsageError
from cloudshift_lab.core.steps import ForgetReport, PinReport
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

_BRANCH = "branch-"


class Keeping:
    """One step of a run, in every store that may have it.

    Args:
        tender: Of the run.
        step: Which.
        stores: By cloud; where the run is now first.
        world: Clock and nonces.
    """

    def __init__(
        self, tender: RunTender, step: int, stores: Mapping[str, Store], world: World
    ) -> None:
        self._run_id = tender.run_id
        self._name = tender.record.spec.name
        self._step = step
        self._stores = stores
        self._world = world

    @property
    def ref(self) -> str:
        """``gpt@400``."""
        return f"{self._name}@{self._step}"

    def pinning(self, store: Store, name: str | None) -> Work:
        """Pin the step in the store that was found to have it.

        Raises:
            UsageError: The name cannot be a pin's.
        """
        chosen = f"{self._run_id}-{self._step}" if name is None else name
        pin_key(chosen)
        if chosen.startswith(_BRANCH):
            raise UsageError(
                f"pins that begin with '{_BRANCH}' guard branches being made; choose another name"
            )
        place = next(cloud for cloud, each in self._stores.items() if each.url == store.url)

        def work(_task: Task) -> PinReport:
            pin(store, chosen, self._run_id, self._step, world=self._world)
            return PinReport(step=self.ref, is_pinned=True, names=(chosen,), places=(place,))

        return work

    def unpinning(self, name: str | None) -> Work:
        """Take out the step's pins, or one; those of branches being made only by their name.

        Raises:
            NotFound: There is none.
            Unavailable, Denied, Corrupt: A store or a pin in it.
        """
        found = {
            cloud: [each for each in self._pins(store) if name in (None, each)]
            for cloud, store in self._stores.items()
        }
        found = {cloud: names for cloud, names in found.items() if names}
        if not found:
            called = "" if name is None else f" called '{name}'"
            raise NotFound(
                f"{self.ref} has no pin{called}; to see pins: cloudshift log {self._name}"
            )

        def work(_task: Task) -> PinReport:
            for cloud, names in found.items():
                for each in names:
                    unpin(self._stores[cloud], each)
            names = sorted({each for listed in found.values() for each in listed})
            return PinReport(
                step=self.ref, is_pinned=False, names=tuple(names), places=tuple(found)
            )

        return work

    def forgetting(self) -> Work:
        """Forget the step in every store in whose log it is not the newest.

        Raises:
            Conflict: It is pinned, or nowhere anything but the newest.
            Unavailable, Denied, Corrupt: A store, a log or a pin in it.
        """
        newest_in: list[str] = []
        older_in: list[str] = []
        for cloud, store in self._stores.items():
            if names := self._pins(store):
                raise Conflict(
                    f"{self.ref} is pinned as {', '.join(names)} in {cloud}; "
                    f"let go of it first: cloudshift unpin {self.ref}"
                )
            commits = RunLog(store, self._run_id, self._world).sync().commits
            if self._step in {commit.step for commit in commits}:
                (newest_in if commits[-1].step == self._step else older_in).append(cloud)
        if not older_in:
            raise Conflict(
                f"{self.ref} is the newest step in {', '.join(newest_in)} and cannot be forgotten; "
                "save a newer one, or, if it cannot be read and the run has ended: "
                f"cloudshift gc --without {self._name}"
            )

        def work(_task: Task) -> ForgetReport:
            for cloud in older_in:
                log = RunLog(self._stores[cloud], self._run_id, self._world)
                log.forget(steps=[self._step], nonce=self._world.new_id("forget"))
            return ForgetReport(step=self.ref, places=tuple(older_in), newest_in=tuple(newest_in))

        return work

    def _pins(self, store: Store) -> list[str]:
        """Names of the pins that people have put on the step."""
        found = (each for each in list_pins(store, self._run_id) if each.step == self._step)
        return [each.name for each in found if not each.name.startswith(_BRANCH)]


def refuse_active(tender: RunTender) -> None:
    """See that a run has ended, before it is given up.

    Raises:
        Conflict: It has not, or something of it still runs.
    """
    is_over = tender.record.ended is not None and not tender.record.awaits_restart
    if not is_over or not tender.side(tender.owner).is_gone():
        name = tender.record.spec.name
        raise Conflict(f"{name} has not ended; stop it first: cloudshift stop {name}")


def end_ownership(tender: RunTender, world: World) -> None:
    """Release an ended run whose agent died without doing so: should it wake, it is fenced.

    A run that somebody else has taken over stays theirs.

    Raises:
        Unavailable, Denied, Corrupt: The run's store or log.
    """
    side = tender.side(tender.owner)
    log = RunLog(side.store, tender.run_id, world)
    state = log.sync()
    ours = (side.job.generation, side.job.owner, None)
    if (state.generation, state.owner, state.home_url) == ours:
        log.release(generation=side.job.generation, nonce=f"{side.job.owner}:gave-up")
