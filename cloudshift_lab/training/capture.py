"""Copies the state while the next step computes, and drops a copy that was torn."""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from cloudshift_lab.training.arena import Arena, Opened, fill
from cloudshift_lab.training.flight import Flight, Lost, carry
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.watching import Watch

Mode = Literal["overlapped", "blocking"]


class Capture:
    """Takes the state at a boundary without making training wait for the copy.

    ``begin`` copies what may change at any moment (buffers, randomness, leaves) and leaves
    parameters and optimizer tensors to a thread: they keep their values until the optimizer's
    next step, which therefore waits for the thread first. The thread announces the step once it is
    certain that nothing changed meanwhile: at that optimizer step, or a few seconds after the copy
    when none comes. A copy that something changed under is dropped, and from then on
    captures copy everything at the boundary while training waits (``mode`` "blocking"). What a
    ``Watch`` cannot see slips through: few elements of a large tensor, changed through ``.data``.

    With a CUDA device the copy runs on a stream of its own into pinned memory, and the optimizer's
    stream waits for it instead of the process. That has never been run on a GPU.

    Args:
        arena: Where the copies go.
        optimizers: All optimizers of the state; without any, captures block.
        model: Looked at for modules that change parameters in ``forward``.
        say: Told once when and why captures begin to block, and what else goes wrong with one.

    ``lost`` says what became of the newest capture, once that is known.
    """

    def __init__(
        self,
        arena: Arena,
        optimizers: Sequence[object],
        model: nn.Module | None = None,
        *,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._arena = arena
        self._say = say
        self._flight: Flight | None = None
        self._watch: Watch | None = None
        self._rehearsal: Watch | None = None
        self._held: Opened | None = None
        self._flights: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.mode: Mode = "overlapped" if optimizers else "blocking"
        self.reason: str | None = None
        self.lost = Lost.NOTHING
        pattern = _unsafe_pattern(optimizers, model)
        if pattern is not None:
            self._block(pattern)
        self._handle = register_optimizer_step_pre_hook(_weakly(self))
        self._end = weakref.finalize(self, _let_go, self._handle, self._flights)

    @property
    def staged_step(self) -> int | None:
        """The newest announced step."""
        return self._arena.staged_step

    @property
    def flight(self) -> Flight | None:
        """The capture that the thread carries; None when there is none, or it is closed."""
        return self._flight

    @property
    def held_step(self) -> int | None:
        """The step that is copied and waits for ``announce_held``."""
        return None if self._held is None else self._held.staged.step

    @property
    def is_busy(self) -> bool:
        """Whether a capture is under way, or the newest one is not released yet."""
        flight = self._flight
        is_flying = flight is not None and not flight.is_done.is_set()
        return is_flying or self._arena.is_busy

    def rehearse(self, share: Share) -> None:
        """Take the memory, and watch one step without copying anything.

        A script in which copies would be torn is found out before the first capture.

        Raises:
            Exhausted: The shared memory is full.
        """
        self._arena.reserve(share)
        if self.mode == "overlapped":
            self._rehearsal = self._watch_of(share)
            self._rehearsal.begin()

    def begin(self, step: int, share: Share, *, is_last: bool = False) -> None:
        """Capture the state as it is now.

        A last step is copied and announced before this returns.

        Raises:
            Conflict: The capture before is not released yet, and this is not the last step.
            Exhausted: The shared memory is full.
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self.finish()
        self._rehearsal = self._held = None
        self.lost = Lost.NOTHING
        if is_last or self.mode == "blocking":
            self._arena.stage(step, share, is_last=is_last)
            return
        opened = self._arena.open(step, share, is_last=False)
        watch = self._watch_of(share)
        watch.begin()
        opened.volatile.begin()
        opened.volatile.read()
        opened.volatile.fence()
        self._start_thread()
        opened.steady.begin()
        self._flight = Flight(self._arena, opened, watch)
        self._flights.put(self._flight)

    def take(self, step: int, share: Share) -> None:
        """Copy and announce the state now: training waits anyway.

        Raises:
            Conflict, Exhausted, UsageError: As ``begin``.
        """
        self.finish()
        self._rehearsal = self._held = None
        self.lost = Lost.NOTHING
        self._arena.stage(step, share, is_last=False)

    def hold(self, step: int, share: Share) -> None:
        """Copy a last state now, but announce it only with ``announce_held``.

        Raises:
            Exhausted, UsageError: As ``begin``.
        """
        self.finish()
        self._held = None
        opened = self._arena.open(step, share, is_last=True)
        fill(opened)
        self._held = opened

    def announce_held(self) -> None:
        """Announce what is held; no-op when nothing is."""
        held, self._held = self._held, None
        if held is not None:
            self._arena.announce(held)

    def settle(self) -> None:
        """Between steps: take notice of a capture that is complete, without waiting for one."""
        self._end_rehearsal()
        flight = self._flight
        if flight is None or not flight.is_copied.is_set():
            return
        flight.judge()
        if flight.torn_by is not None or flight.is_done.is_set():
            self._close(flight)

    def finish(self) -> None:
        """Wait until the capture under way is announced or dropped."""
        flight = self._flight
        if flight is None:
            return
        flight.opened.steady.fence()
        flight.is_copied.wait()
        flight.judge()
        flight.is_done.wait()
        self._close(flight)

    def drop(self) -> None:
        """Forget what is captured and not released: another rank lost its part of that step."""
        self.finish()
        self._arena.drop()
        self.lost = Lost.NOTHING

    def close(self) -> None:
        """Finish, end the thread and leave the optimizers alone.

        The thread is waited for: one that ends while the interpreter does can leave it hanging.
        """
        self.finish()
        self._end()
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            thread.join()

    # -- the optimizer's step ---------------------------------------------------------------------

    def before_optimizer(self, closure: object) -> None:
        """Called at the start of every optimizer step of the process."""
        if self.mode == "blocking" and self._flight is None:
            return
        self._end_rehearsal()
        flight = self._flight
        if flight is not None and not flight.is_judged.is_set():
            flight.opened.steady.fence()
            flight.judge()
        if closure is not None:
            self._block("the optimizer computes the loss within its step (a closure)")
        elif torch._C._current_graph_task_id() != -1:
            self._block("an optimizer steps during backward")

    def _end_rehearsal(self) -> None:
        rehearsal, self._rehearsal = self._rehearsal, None
        name = None if rehearsal is None else rehearsal.changed()
        if name is not None:
            self._block(_changed(name))

    def _block(self, reason: str) -> None:
        """Copy everything at the boundary from now on; say so once."""
        if self.reason is not None:
            return
        self.mode, self.reason = "blocking", reason
        self._say(
            f"training waits for the copy of its state at each save, because {reason}; "
            "to let copies overlap with training, change parameters only in an optimizer's step "
            "after backward"
        )

    # -- the thread -------------------------------------------------------------------------------

    def _watch_of(self, share: Share) -> Watch:
        tensors = [part.tensor for part in share.steady]
        if self._watch is None or not self._watch.is_of(tensors):
            self._watch = Watch([part.name for part in share.steady], tensors)
        return self._watch

    def _start_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=carry, args=(self._flights,), name="cloudshift-capture", daemon=True
            )
            self._thread.start()

    def _close(self, flight: Flight) -> None:
        self._flight = None
        if flight.torn_by is not None:
            self.lost = Lost.TORN
            self._block(_changed(flight.torn_by))
        elif flight.failure is not None:
            self.lost = Lost.FAILED
            self._say(f"step {flight.step} is not saved: {flight.failure}")


def _let_go(handle: RemovableHandle, flights: queue.SimpleQueue[Flight | None]) -> None:
    handle.remove()
    flights.put(None)


def _changed(name: str) -> str:
    return f"'{name}' changed before the optimizer's step"


def _unsafe_pattern(optimizers: Sequence[object], model: nn.Module | None) -> str | None:
    """What in a script is known to change parameters where a copy cannot be kept from it."""
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            return f"{type(optimizer).__name__} is no torch optimizer, so its steps are not seen"
        if isinstance(optimizer, torch.optim.LBFGS):
            return "the optimizer computes the loss within its step (a closure)"
    for name, module in () if model is None else model.named_modules():
        if getattr(module, "max_norm", None) is not None:
            return f"'{name}' has max_norm, which changes its rows in forward"
    return None


def _weakly(capture: Capture) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """The hook; it does not keep a capture alive that nobody uses any more."""
    reference = weakref.ref(capture)

    def before(_optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            found.before_optimizer(closure)

    return before
