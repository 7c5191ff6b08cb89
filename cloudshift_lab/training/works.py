"""Everything a rank needs to save without an agent: a place, copies, a saver, the commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
import torch
from torch import nn

from cloudshift_lab.checkpoint.keep import KeepPolicy
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import SaverJob
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.store import Store
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.background import Background
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.flight import Flight
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.place import Place
from cloudshift_lab.training.tenancy import Ranks, take_run


class Works:
    """Made at the first save and closed at the end; all ranks make theirs, or none does.

    Args:
        store: Where to.
        run_id: Whose steps.
        ranks: This one among all.
        keep: Which steps to keep.
        options: fsspec options of the store, for the saver process.
        attached: Optimizers and the model, for copies that overlap with training.

    Raises:
        Conflict: Another process saves this run.
        Exhausted: No room in the shared memory.
    """

    def __init__(
        self, store: Store, run_id: str, ranks: Ranks, *, keep: KeepPolicy,
        options: Mapping[str, object], attached: Sequence[torch.optim.Optimizer | nn.Module],
    ) -> None:  # fmt: skip
        self._run_id = run_id
        self._place = _place_of(store.url, run_id, ranks)
        try:
            self._tenancy = take_run(store, run_id, ranks)
            saver = self._start_saver(store, ranks, options)
        except BaseException:
            self._place.remove()
            raise
        self.background = Background(
            store, run_id, self._tenancy.owned, saver, keep=keep,
            generation=self._tenancy.generation, incarnation=self._tenancy.incarnation,
        )  # fmt: skip
        self._arena = Arena(
            self._place.path, ranks.rank, ranks.world_size,
            released=lambda: self.background.released_step,
        )  # fmt: skip
        optimizers = [part for part in attached if isinstance(part, torch.optim.Optimizer)]
        model = next((part for part in attached if isinstance(part, nn.Module)), None)
        self.capture = Capture(self._arena, optimizers, model)

    @property
    def saver_pid(self) -> int | None:
        """The saver's process id; None while there is none."""
        return self.background.saver_pid

    def check(self, step: int, share: Share) -> None:
        """Refuse a save that cannot succeed, and take its memory; call it when none is under way.

        Raises:
            UsageError: The step, or a later one, was saved before.
            Exhausted: No room in the shared memory.
        """
        last = max(self._tenancy.last_step, self.background.saved_step)
        if step <= last:
            raise UsageError(
                f"run '{self._run_id}' has step {last} already and steps never go back: "
                f"save a later one than {step}, or save under another run id"
            )
        self._arena.reserve(share)

    def staged(self) -> Callable[[], bool]:
        """Call after ``capture.begin``: what tells, or raises, whether that copy is complete.

        It asks nothing of the training thread, which may itself wait for the save.
        """
        flight = self.capture.flight
        return (lambda: True) if flight is None else partial(_has_landed, flight)

    def close(self) -> None:
        """Finish what is under way, and give the run and the memory back."""
        try:
            self.capture.close()
            self.background.close()
            if self._tenancy.owned is not None:
                self._tenancy.owned.release()
        finally:
            self._place.remove()

    def _start_saver(
        self, store: Store, ranks: Ranks, options: Mapping[str, object]
    ) -> SaverProcess:
        job = SaverJob(
            run_id=self._run_id,
            generation=self._tenancy.generation,
            world_size=ranks.world_size,
            ranks=(ranks.rank,),
            store_url=store.url,
            store_options={key: msgspec.Raw(to_json(value)) for key, value in options.items()},
        )
        place = self._place.path
        return SaverProcess(job, place, place / "saver.log")


def _place_of(url: str, run_id: str, ranks: Ranks) -> Place:
    """This rank's shared memory, once every rank has its own.

    Raises:
        Conflict: Another process of some rank's machine saves this run.
        Denied: A place belongs to another user.
    """
    place: Place | None = None
    failure: CloudshiftError | None = None
    try:
        place = Place(url, run_id, ranks.rank)
    except CloudshiftError as error:
        failure = error
    try:
        ranks.fail_together(failure)
    except BaseException:
        if place is not None:
            place.remove()
        raise
    assert place is not None, "a rank without a place has failed"
    return place


def _has_landed(flight: Flight) -> bool:
    """Whether a capture is announced.

    Raises:
        CloudshiftError: It was lost.
    """
    if not flight.is_done.is_set():
        return False
    if flight.torn_by is not None or flight.failure is not None:
        why = flight.failure or f"'{flight.torn_by}' changed while it was copied"
        raise CloudshiftError(f"step {flight.step} was not saved: {why}; save again")
    return True
