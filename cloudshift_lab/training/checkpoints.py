"""Checkpoints for a training loop of one's own: save, restore, keep, without any agent.

::

    manager = CheckpointManager("s3://bucket/lab", "my-run", save_policy="100", keep="5")
    manager.attach(optimizer, model)
    for step in range(manager.restore("latest", state) + 1, total):
        train_step()
        manager.save(step, state)
    manager.close()

where ``state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}``.
"""

from __future__ import annotations

import atexit
import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from cloudshift_lab.checkpoint.keep import goes_by_metric, parse_keep
from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.errors import CloudshiftError, NotFound, UsageError
from cloudshift_lab.core.save_policy import parse_save_policy
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.app_state import PerRank, ShareMaker
from cloudshift_lab.training.background import SaveHandle, Work
from cloudshift_lab.training.pace import Pace
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.putting_back import put_back
from cloudshift_lab.training.restore import RestoreReport
from cloudshift_lab.training.tenancy import Ranks
from cloudshift_lab.training.works import Works

__all__ = ["CheckpointManager", "PerRank", "SaveHandle"]


class CheckpointManager:
    """Saves steps of a run while training goes on, and gives them back.

    On every save the state is copied into shared memory; a process of low priority hashes,
    compresses and stores it, and rank 0 commits. With several ranks (``torch.distributed``
    initialised) each calls the same methods at the same steps.

    Args:
        url: The store, ``file://``, ``s3://``, ``gs://`` or ``az://``.
        run_id: Whose steps; nobody else may save under it meanwhile.
        async_: False: ``save`` returns when the step is committed.
        save_policy: When ``save`` really saves: ``"100"`` (steps), ``"30s"``, ``"10m"``, or
            ``"auto"``: as often as loses least time, from what saves turn out to cost.
        keep: Which steps to keep: ``"5"``, ``"5,every=1000"``, ``"3,best=2"`` (by the ``metric``
            given to ``save``), ``"all"``.
        store_options: fsspec options of the store.
        mtbf_s: Mean time between failures of the job in seconds, for ``"auto"``; None: a day.

    Raises:
        UsageError: A URL, policy or number that cannot be.
    """

    def __init__(
        self, url: str, run_id: str, *, async_: bool = True, save_policy: str = "auto",
        keep: str = "5", store_options: Mapping[str, object] | None = None,
        mtbf_s: float | None = None,
    ) -> None:  # fmt: skip
        self._store = open_store(url, store_options or {})
        self._run_id = run_id
        self._options = dict(store_options or {})
        self._is_async = async_
        self._keep = parse_keep(keep)
        self._ranks = Ranks()
        self._pace = Pace(parse_save_policy(save_policy), self._ranks, mtbf_s)
        self._share_maker: ShareMaker | None = None
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self._model: nn.Module | None = None
        self.last_restore: RestoreReport | None = None
        self._works: Works | None = None
        self._newest: SaveHandle | None = None
        self._last_step = -1
        self._decided = (-1, False)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def attach(self, *parts: torch.optim.Optimizer | nn.Module) -> None:
        """Let copies overlap with training: give the optimizers and the model, before saving.

        Their tensors are then copied by a thread during the next forward and backward pass, and
        the optimizer's next step waits for the rest. Without it ``save`` copies before it returns.

        Raises:
            UsageError: Something was saved already, or there is no optimizer among the parts.
        """
        optimizers = tuple(p for p in parts if isinstance(p, torch.optim.Optimizer))
        if self._works is not None or not optimizers:
            raise UsageError("call attach(optimizer, model) once, before the first save")
        self._optimizers = optimizers
        self._model = next((p for p in parts if isinstance(p, nn.Module)), None)

    def should_save(self, step: int) -> bool:
        """Whether ``save`` would save this step by the policy; asking changes nothing.

        For what is only worth its time when the step is saved, a validation loss for example::

            if manager.should_save(step):
                manager.save(step, state, metric=validate())

        Every rank asks at every step, as every rank would call ``save``: a policy of time or
        ``"auto"`` is agreed upon by all of them. False for a step that was saved or restored, and
        for earlier ones.
        """
        is_due = self._is_due(step)
        if self._works is not None:
            self._works.capture.settle()
        return is_due and step > self._last_step

    def save(
        self, step: int, app_state: Mapping[str, Any], *, metric: float | None = None,
        force: bool = False,
    ) -> SaveHandle:  # fmt: skip
        """Save the state after a step, if the policy wants it.

        A save that is still under way is waited for. What went wrong with an earlier one is
        raised here, once, and the other ranks do not save this step either; the call after that
        saves again. A save that one rank refuses is refused on all, with that rank's words.

        Args:
            step: Its number; greater than any saved before.
            app_state: Objects with ``state_dict``, dictionaries, tensors, plain values, by name;
                ``PerRank(value)`` for what each rank has its own of.
            metric: How good the step is, smaller is better (a validation loss); for ``best=``.
            force: Save whatever the policy says.

        Raises:
            UsageError: A value that a checkpoint cannot hold, by its key path; a step that exists;
                ``keep`` goes by a metric and none is given.
            Conflict: Another process saves this run. Fenced: another one has taken it over.
            Exhausted: The shared memory is full.
            CloudshiftError: An earlier save failed.
        """
        if metric is None and goes_by_metric(self._keep):
            raise UsageError(
                "keep='best=...' needs a figure of each step: pass metric=loss to save"
            )
        if not (self._is_due(step) or force):
            self._raise_failure()
            return self._skipped(step)
        began = time.perf_counter()
        self._wait_for_newest()
        share = self._agreed_share(app_state, step)
        if share is None:
            return self._skipped(step)
        works = self._works = self._works or self._begin(step, share)
        handle = SaveHandle(step)
        works.capture.begin(step, share)
        works.background.submit(Work(handle, works.staged(), metric))
        self._newest, self._last_step = handle, step
        self._pace.saved(time.perf_counter() - began, handle)
        if not self._is_async:
            self.wait_until_finished()
        return handle

    def restore(
        self, step: int | Literal["latest"], app_state: dict[str, Any], *, strict: bool = True
    ) -> int:
        """Give a committed step back to the objects of ``app_state``; any world size will do.

        Args:
            step: Its number; ``"latest"`` without any committed step leaves everything as it is.
            app_state: As for ``save``; plain values are replaced in it.
            strict: Refuse what does not fit; else take what fits, see ``last_restore``.

        Returns:
            The step that was restored; -1 when there is none yet.

        Raises:
            NotFound: No such step.
            UsageError: The stored state does not fit this one; says which tensors.
            Corrupt: Stored bytes differ from their hash.
        """
        found = step
        if step == "latest":
            newest = self.latest_step()
            found = self._ranks.same(-1 if newest is None else newest)
            if found == -1:
                return -1
        checkpoint = open_run(self._store, self._run_id, found)
        self.last_restore = put_back(checkpoint, app_state, rank=self._ranks.rank, strict=strict)
        self._last_step, self._decided = checkpoint.step, (-1, False)
        return checkpoint.step

    def all_steps(self) -> list[int]:
        """Every committed step, ascending."""
        commits = RunLog(self._store, self._run_id).sync().commits
        return sorted({c.step for c in commits if c.step is not None})

    def latest_step(self) -> int | None:
        """The newest committed step; None before the first."""
        steps = self.all_steps()
        return steps[-1] if steps else None

    def delete(self, step: int) -> None:
        """Make a committed step exist no longer, on rank 0; collections take its bytes later.

        Raises:
            UsageError: It is the newest one, which always stays.
            NotFound: No such step.
        """
        if self._ranks.rank != 0:
            return
        log = RunLog(self._store, self._run_id)
        if log.forget(steps=(step,), nonce=REAL_WORLD.new_id("delete")) == (step,):
            return
        if step == self.latest_step():
            raise UsageError(f"step {step} is the newest, from which training goes on; it stays")
        raise NotFound(f"run '{self._run_id}' has no step {step}; it has {self.all_steps()[-5:]}")

    def wait_until_finished(self) -> None:
        """Wait until the newest save is committed (on other ranks than 0: stored).

        Raises:
            CloudshiftError: A save failed since the last word about it.
        """
        self._wait_for_newest()
        self._raise_failure()

    def close(self) -> None:
        """Finish the save under way, give the run and the memory back. Safe to call twice.

        Raises:
            CloudshiftError: A save failed since the last word about it.
        """
        works, self._works = self._works, None
        if works is None:
            return
        atexit.unregister(self._close_quietly)
        works.close()
        failure = works.background.take_failure()
        if failure is not None:
            raise failure

    # -- one save ---------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        """What the policy says of a step; it is asked once for each."""
        if self._decided[0] != step:
            self._decided = step, self._pace.is_due(step, is_busy=self._is_busy())
        return self._decided[1]

    def _begin(self, step: int, share: Share) -> Works:
        """On the first save: take the run, the memory and a saver process."""
        self._ranks.check_same(spec.name for spec in share.catalog)
        parts: list[torch.optim.Optimizer | nn.Module] = [*self._optimizers]
        if self._model is not None:
            parts.append(self._model)
        works = Works(
            self._store, self._run_id, self._ranks, keep=self._keep, options=self._options,
            attached=parts,
        )  # fmt: skip
        try:
            self._ranks.fail_together(_refusal(works, step, share))
        except BaseException:
            works.close()
            raise
        atexit.register(self._close_quietly)
        return works

    def _close_quietly(self) -> None:
        """At the end of the process there is nobody left to tell; the log says what was saved."""
        with contextlib.suppress(CloudshiftError):
            self.close()

    def _agreed_share(self, app_state: Mapping[str, Any], step: int) -> Share | None:
        """This rank's share; None when an earlier save failed on another rank, and says so there.

        A value that cannot be held is found before anything is taken.
        """
        earlier, share = self._take_failure(), None
        refusal: CloudshiftError | None = None
        try:
            if earlier is None:
                share = self._shares().share(app_state, step)
        except CloudshiftError as error:
            refusal = error
        if self._works is not None and share is not None:
            refusal = _refusal(self._works, step, share)
        if earlier is not None:
            with contextlib.suppress(CloudshiftError):
                self._ranks.fail_together(None, skip=True)
            raise earlier
        return None if self._ranks.fail_together(refusal) else share

    def _shares(self) -> ShareMaker:
        if self._share_maker is None:
            self._share_maker = ShareMaker(
                self._ranks.rank, self._ranks.world_size, self._optimizers
            )
        return self._share_maker

    def _is_busy(self) -> bool:
        return self._newest is not None and not self._newest.upload_completion.done()

    def _wait_for_newest(self) -> None:
        if self._newest is not None and self._works is not None:
            self._works.capture.finish()
            self._newest.upload_completion.exception()

    def _take_failure(self) -> CloudshiftError | None:
        return None if self._works is None else self._works.background.take_failure()

    def _raise_failure(self) -> None:
        failure = self._take_failure()
        if failure is not None:
            raise failure

    def _skipped(self, step: int) -> SaveHandle:
        if self._works is not None:
            self._works.capture.settle()
        handle = SaveHandle(step, is_skipped=True)
        handle.staging_completion.set_result(None)
        handle.upload_completion.set_result(step)
        return handle


def _refusal(works: Works, step: int, share: Share) -> CloudshiftError | None:
    """Why this rank cannot save a step; None if it can."""
    try:
        works.check(step, share)
    except CloudshiftError as error:
        return error
    return None
