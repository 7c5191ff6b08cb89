"""The rank's half of a rescue: what a death must not take along, and staging when told to."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import CloudshiftError, Conflict
from cloudshift_lab.core.rescue import (
    MAX_OWN_BYTES,
    RESCUE_SLOT,
    OwnPage,
    RescueWord,
    call_file,
)
from cloudshift_lab.core.staging import StagedRank, replace_file, slot_file, staged_file
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.training.node import Node
from cloudshift_lab.training.own import OwnState, read_own
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.sharding import holdings, is_sharded, layout_of
from cloudshift_lab.training.slot import Slot
from cloudshift_lab.training.state import TrainingState

LINGER_S = 4.0
MODULES_FILE = "modules.json"
_WORDS = msgspec.json.Decoder(RescueWord)


class Lifeline:
    """Keeps this rank's state savable at every moment, also by others and from another thread.

    Between a boundary and the optimizer's next step the state does not change, so that a thread
    can stage it while the rank hangs in a collective with a peer that is dead. What changes
    meanwhile (randomness, extras, buffers) was put aside at the boundary. Once it has staged, this
    rank changes nothing any more: its agent ends it.

    Args:
        node: The agent's line.
        state: What to stage.
        optimizers: Of the state.
        world_size: Ranks of the job.
        is_steady: Whether parameters change in the optimizer's step alone, as far as is known.
        say: Shows the researcher a line.
    """

    def __init__(
        self, node: Node, state: TrainingState, optimizers: Sequence[object], *, world_size: int,
        is_steady: Callable[[], bool], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._state = state
        self._optimizers = [o for o in optimizers if isinstance(o, torch.optim.Optimizer)]
        self._world_size = world_size
        self._is_steady = is_steady
        self._say = say
        self._page = OwnPage.create(node.node_dir, node.rank)
        self._own = OwnState(state.extras)
        self._lock = threading.Lock()
        self._is_frozen = False
        self._completed: int | None = None
        self._is_stepping = False
        self._has_marked = False
        self._groups: list[tuple[object, ...]] = []
        self._aside: dict[str, torch.Tensor] = {}
        self._first_aside: dict[str, torch.Tensor] = {}
        self._served = threading.Event()
        self._is_able = True
        self._pipe = _open_pipe(node)
        self._handle = register_optimizer_step_pre_hook(_weakly(self))
        _ignore_termination()
        atexit.register(self.linger)
        threading.Thread(target=self._listen, name="cloudshift-rescue", daemon=True).start()

    def enter(self, step: int) -> None:
        """Training begins after ``step``."""
        self._completed = step

    def mark(self, step: int) -> None:
        """The state after ``step`` is whole."""
        if not self._is_able:
            return
        with self._lock:
            if not self._has_marked:
                self._page.cover(self._coverable())
                self._tell_modules()
            self._put_aside()
            self._groups = _settings_of(self._optimizers)
            self._completed, self._is_stepping, self._has_marked = step, False, True
            self._note(self._page.step_ends, step, self._own.take)

    def linger(self) -> None:
        """This process ends; if by an error, let the agent have its state staged before."""
        failed = getattr(sys, "last_value", None) is not None
        if failed and self._is_able and not self._is_stepping and self._has_marked:
            self._served.wait(LINGER_S)

    def before_optimizer(self) -> None:
        """Called at the start of every optimizer step of the process."""
        if self._is_stepping or self._completed is None or not self._is_able:
            return
        with self._lock:
            self._is_stepping = True
            self._note(self._page.step_begins, self._completed + 1, self._own.generators)

    # -- at a boundary ----------------------------------------------------------------------------

    def _note(
        self, write: Callable[[int, bytes], None], step: int, take: Callable[[], bytes]
    ) -> None:  # fmt: skip
        """Write down what only this rank has; if that cannot be, nobody is promised anything."""
        try:
            own = take()
        except CloudshiftError:
            self._is_able = False
        if self._is_able and len(own) <= MAX_OWN_BYTES:
            write(step, own)
        else:
            self._is_able = False
            self._page.give_up()

    def _put_aside(self) -> None:
        """Copy the buffers, which the next forward pass may change."""
        now = self._state.buffers()
        if self._aside.keys() != now.keys():
            self._aside = {name: tensor.detach().clone() for name, tensor in now.items()}
            self._first_aside = {name: tensor.clone() for name, tensor in self._aside.items()}
            return
        for name, tensor in now.items():
            self._aside[name].copy_(tensor.detach())

    def _tell_modules(self) -> None:
        """Say what is imported, so that those who come after us can do so beforehand."""
        if self._node.rank == 0:
            names = list(_installed_modules())
            replace_file(self._node.node_dir / MODULES_FILE, to_json(names))

    def _coverable(self) -> set[int]:
        return covered(
            self._state.steady_tensors(), rank=self._node.rank, world_size=self._world_size
        )

    # -- when the agent calls ---------------------------------------------------------------------

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._pipe, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._serve(_WORDS.decode(line))

    def _serve(self, word: RescueWord) -> None:
        """Stage what was asked for, unless this rank is somewhere else by now."""
        if not self._is_frozen:
            self._lock.acquire()
            self._is_frozen = True
        try:
            self._check(word.step)
            for rank in word.ranks:
                self._stage(word.step, rank, self._share(word.step, rank))
            self._served.set()
        except (CloudshiftError, OSError, RuntimeError) as error:
            self._say(f"step {word.step} is not saved after a failure: {error}")
            self._lock.release()
            self._is_frozen = False

    def _check(self, step: int) -> None:
        """Raise ``Conflict`` unless the state in memory is the one after ``step``."""
        if self._is_stepping or self._completed != step:
            raise Conflict("this rank is not there any more")
        if not self._is_steady() or _settings_of(self._optimizers) != self._groups:
            raise Conflict("the script changes the state between its steps too")

    def _share(self, step: int, rank: int) -> Share:
        """A rank's share; what it alone has is what its page says, extras at the worst ours."""
        page = self._page if rank == self._node.rank else OwnPage.open(self._node.node_dir, rank)
        data = None if page is None else page.own(step)
        if page is None or data is None:
            raise Conflict(f"nobody knows what rank {rank} had")
        own = read_own(data, rank)
        if rank != self._node.rank:
            if step not in page.standing().own:
                own = msgspec.structs.replace(own, extras=self._extras_for(page, step, rank))
            self._check_buffers(rank)
        return self._state.share_of(step, rank, own, self._aside)

    def _extras_for(self, page: OwnPage, step: int, rank: int) -> bytes:
        """What a rank's extras would be after a step whose end it did not live to see."""
        theirs, ours = page.own(step - 1), self._page.own(step - 1)
        now = self._page.own(step)
        if theirs is None or ours is None or now is None:
            raise Conflict(f"nobody knows what extras rank {rank} had")
        if read_own(theirs, rank).extras != read_own(ours, rank).extras:
            raise Conflict(f"the extras of rank {rank} are its own")
        return read_own(now, rank).extras

    def _check_buffers(self, rank: int) -> None:
        """Raise ``Conflict`` if another rank's buffers may be other than ours: they change."""
        changed = [n for n, t in self._aside.items() if not torch.equal(t, self._first_aside[n])]
        if rank == 0 and changed:
            raise Conflict(f"'{changed[0]}' of rank 0 is known to nobody else")

    def _stage(self, step: int, rank: int, share: Share) -> None:
        node_dir = self._node.node_dir
        slot = Slot(slot_file(node_dir, rank, RESCUE_SLOT))
        slot.arrange(share.steady, share.volatile)
        plan = slot.plan("all", [part.tensor for part in (*share.steady, *share.volatile)])
        plan.begin()
        plan.read()
        plan.complete()
        staged = StagedRank(
            step=step,
            is_last=False,
            rank=rank,
            world_size=self._world_size,
            slot_file=slot_file(node_dir, rank, RESCUE_SLOT).name,
            boxes=slot.boxes,
            leaves=msgspec.Raw(encode_leaves(share.leaves)),
            catalog=share.catalog,
        )
        replace_file(staged_file(node_dir, rank, RESCUE_SLOT), to_json(staged))


def covered(steady: Mapping[str, torch.Tensor], *, rank: int, world_size: int) -> set[int]:
    """Ranks all of whose part of the model this rank holds too."""
    others = set(range(world_size)) - {rank}
    everywhere = set(others) | {rank}
    for tensor in steady.values():
        layout = layout_of(tensor, world_size)
        if set(layout.ranks) != everywhere:
            return set()
        for _, ranks in holdings(layout) if is_sharded(tensor) else ():
            if rank not in ranks:
                others -= set(ranks)
    return others


def _installed_modules() -> Iterator[str]:
    """Modules of installed packages: those of the script are its own, and may do things."""
    places = (sys.prefix, sys.base_prefix)
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None) or ""
        if origin.startswith(places) or name.partition(".")[0] == __package__.partition(".")[0]:
            yield name


def _settings_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[tuple[object, ...]]:
    """Every parameter group's hyperparameters."""
    return [
        tuple(value for key, value in group.items() if key != "params")
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def _open_pipe(node: Node) -> int:
    """Our end of the pipe; open for writing too, so that it never ends."""
    path = call_file(node.node_dir, node.rank)
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _ignore_termination() -> None:
    """torchrun ends the survivors of a death with SIGTERM; ours have something to do first."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _weakly(lifeline: Lifeline) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """The hook; it does not keep a lifeline alive that nobody uses any more."""
    reference = weakref.ref(lifeline)

    def before(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        found = reference()
        if found is not None:
            found.before_optimizer()

    return before
