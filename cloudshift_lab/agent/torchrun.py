"""The ranks of this node under torchrun: started, told, watched and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from cloudshift_lab.agent.bootstrap import DONE_SUFFIX, ERRORS, GATE_ENV, LAUNCH_FILE, LOGS
from cloudshift_lab.agent.failures import first_failure
from cloudshift_lab.agent.ports import PortClaim
from cloudshift_lab.agent.progress import Progress
from cloudshift_lab.agent.protocols import RankError, RanksState, RanksView, Restore
from cloudshift_lab.agent.rescue import Rescue
from cloudshift_lab.agent.spare import WARM_AFTER_STEPS, Spare, may_keep_spare
from cloudshift_lab.core.rescue import RESCUE_SLOT
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import (
    CONTROL_FILE,
    JOB_ENV,
    NODE_DIR_ENV,
    NUM_SLOTS,
    SEED_ENV,
    Control,
    Go,
    RankState,
    StagedHead,
    StepReport,
    replace_file,
    staged_file,
    state_file,
)
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import World

T = TypeVar("T", bound=msgspec.Struct)
FAILURE_GRACE_S = 2.0
LAUNCHER_S = 1.0
LAUNCHER_LOG = "torchrun.log"
_LOOPBACK = "127.0.0.1"
_BOOTSTRAP = "cloudshift_lab.agent.bootstrap"


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of all nodes meet; the launcher of node 0 listens there."""

    address: str
    port: int


class TorchrunRanks:
    """Implements ``RanksProtocol`` with real processes on this machine.

    Each start is one torchrun without restarts of its own: a restart is a new start from a
    committed step, so that no rank ever meets the addresses of an earlier incarnation.

    Args:
        job: What to run.
        script: The script's file.
        node_dir: Shared memory directory, ours alone.
        world: Clock.
        ship_rows: Called when the ranks have said their last word, before anybody is told so:
            whoever hears of the end finds every step report already delivered.
    """

    def __init__(
        self, job: JobSpec, script: Path, node_dir: Path, world: World,
        *, ship_rows: Callable[[], None],
    ) -> None:  # fmt: skip
        self._job = job
        self._script = script
        self._node_dir = node_dir
        self._world = world
        self._workdir = Path(job.workdir)
        num_ranks = job.placement.ranks_per_node
        self._num_ranks = num_ranks
        self._ranks = range(job.node * num_ranks, (job.node + 1) * num_ranks)
        self._process: subprocess.Popen[bytes] | None = None
        self._control = Control()
        self._files: dict[Path, tuple[tuple[int, int], msgspec.Struct]] = {}
        self._rows: deque[StepReport] = deque()
        self._progress = Progress(self._ranks[0])
        self._ship_rows = ship_rows
        self._are_rows_shipped = False
        self._failing_since: float | None = None
        self._ports = PortClaim(_LOOPBACK, world.random)
        is_whole = job.restarts > 0 and job.placement.nodes == 1
        self._can_rescue = is_whole and Rescue.is_possible()
        self._rescue: Rescue | None = None
        self._keeps_spare = may_keep_spare(job)
        self._spare: Spare | None = None
        self._num_spares = 0

    @property
    def control(self) -> Control:
        """What the ranks were told last."""
        return self._control

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        self.prepare(restore, standby=standby)
        self.launch(Meeting(_LOOPBACK, self.free_port()))

    def restart(self) -> None:
        spare, self._spare = self._spare, None
        self.kill()
        self._forget(keep=self._staged_files())
        self.mirror(Control())
        if spare is None or not spare.is_alive:
            self.launch(Meeting(_LOOPBACK, self.free_port()))
            return
        self._process, self._ports = spare.process, spare.ports
        self._watch()
        spare.open()

    def prepare(self, restore: Restore | None, *, standby: bool) -> None:
        """The part of ``start`` before there are any ranks; what is said then they will hear."""
        go = None if standby else _go(restore)
        self.prepare_again(Control(go))

    def prepare_again(self, control: Control | None = None) -> None:
        """End the ranks and forget them, but not what they were told last; or tell them this."""
        self.kill()
        self._forget()
        self.mirror(self._control if control is None else control)

    def mirror(self, control: Control) -> None:
        """Tell the ranks what others were told; that again is no news."""
        serial = self._control.serial
        if msgspec.structs.replace(control, serial=serial) != self._control or serial == 0:
            self._write(msgspec.structs.replace(control, serial=serial + 1))

    def launch(self, meeting: Meeting) -> None:
        """Start this node's ranks, which meet those of the other nodes."""
        self._process = self._launched(meeting, {})
        self._watch()

    def _launched(self, meeting: Meeting, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        (self._workdir / LOGS).mkdir(parents=True, exist_ok=True)
        with (self._workdir / LOGS / LAUNCHER_LOG).open("ab") as log:
            return subprocess.Popen(
                self._command(meeting),
                env={**self._environment(), **env},
                cwd=self._workdir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _watch(self) -> None:
        if self._can_rescue:
            self._rescue = Rescue(self._node_dir, self._ranks, self._world)

    def _keep_spare(self) -> None:
        """Have interpreters wait for the next restart, once these ranks train."""
        if self._spare is not None or self._progress.num_steps < WARM_AFTER_STEPS:
            return
        self._num_spares += 1
        gate = self._node_dir / f"gate-{self._num_spares}"
        ports = PortClaim(_LOOPBACK, self._world.random)
        meeting = Meeting(_LOOPBACK, ports.take())
        process = self._launched(meeting, {GATE_ENV: str(gate)})
        self._spare = Spare(process, gate, ports)

    def go(self, restore: Restore | None, limit: int | None = None) -> None:
        if self._control.go is None:
            for path in self._staged_files():
                path.unlink()
        self._say(go=_go(restore), limit=limit)

    def limit(self, step: int | None) -> None:
        self._say(limit=step)

    def request_drain(self) -> None:
        self._say(drain=True)

    def capture(self) -> None:
        self._say(capture=self._control.capture + 1)

    def release(self, step: int) -> None:
        self._say(released_step=max(step, self._control.released_step))

    def take(self, rows: list[StepReport]) -> None:
        """Learn from step reports how far the ranks are; safe to call from another thread."""
        self._rows.extend(rows)

    def poll(self) -> RanksView:
        states = self._states()
        state, error = self._judge(states)
        if state in ("drained", "finished", "failed") and not self._are_rows_shipped:
            self._are_rows_shipped = True
            self._ship_rows()
        while self._rows:
            self._progress.add(self._rows.popleft())
        progress = self._progress
        if self._keeps_spare and state == "running":
            self._keep_spare()
        step, is_last = self._newest_staged()
        return RanksView(
            state=state,
            step=progress.step,
            loss=progress.loss,
            first_step_at=progress.first_step_at,
            last_step_at=progress.last_step_at,
            staged_step=step,
            staged_last=is_last,
            staged_loss=progress.loss_of(step),
            state_bytes=max((s.state_bytes for s in states), default=0),
            num_steps=progress.num_steps,
            steps_s=progress.steps_s,
            step_s=progress.step_s,
            held_step=states[0].step if state == "held" else None,
            losses=progress.losses,
            warning=next((s.warning for s in states if s.warning), None),
            error=error,
        )

    def kill(self) -> None:
        process, self._process = self._process, None
        rescue, self._rescue = self._rescue, None
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
        if rescue is not None:
            rescue.close()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    # -- starting ---------------------------------------------------------------------------------

    def _command(self, meeting: Meeting) -> list[str]:
        job = self._job
        python = job.python or sys.executable
        errors = self._workdir / ERRORS
        return [
            python, "-m", _BOOTSTRAP, "launch", str(os.getpid()), str(errors),
            f"--nnodes={job.placement.nodes}", f"--nproc-per-node={self._num_ranks}",
            "--max-restarts=0", "--monitor-interval=0.1", "--rdzv-backend=static",
            f"--node-rank={job.node}", f"--master-addr={meeting.address}",
            f"--master-port={meeting.port}",
            f"--local-addr={_LOOPBACK}", "-m", _BOOTSTRAP, "rank", str(self._workdir),
            str(self._script), *self._job.args,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        ours = {
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "PYTHONUNBUFFERED": "1",
            SEED_ENV: str(self._job.seed),
        }
        mandatory = {
            NODE_DIR_ENV: str(self._node_dir),
            JOB_ENV: str(self._workdir / "job.json"),
        }
        return {**os.environ, **ours, **self._job.env, **mandatory}

    def free_port(self) -> int:
        """A port that is free, and that no other agent here takes before torchrun listens."""
        return self._ports.take()

    def _forget(self, keep: Collection[Path] = ()) -> None:
        """Nothing of an earlier start may be taken for one of this start."""
        for pattern in ("rank-*", ".rank-*"):
            for path in self._node_dir.glob(pattern):
                if path not in keep:
                    path.unlink(missing_ok=True)
        errors = self._workdir / ERRORS
        errors.mkdir(parents=True, exist_ok=True)
        for path in errors.iterdir():
            path.unlink()
        self._files.clear()
        self._rows.clear()
        self._progress = Progress(self._ranks[0])
        self._failing_since = None
        self._are_rows_shipped = False

    def _staged_files(self) -> set[Path]:
        return set(self._node_dir.glob("rank-*.slot-*"))

    def _say(self, **changes: object) -> None:
        """Change the ranks' orders; what is no change is not said."""
        changed = msgspec.structs.replace(self._control, **changes)
        if changed != self._control:
            self._write(msgspec.structs.replace(changed, serial=changed.serial + 1))

    def _write(self, control: Control) -> None:
        self._control = control
        replace_file(self._node_dir / CONTROL_FILE, to_json(control))

    # -- watching ---------------------------------------------------------------------------------

    def _judge(self, states: list[RankState]) -> tuple[RanksState, RankError | None]:
        if self._process is None:
            return "absent", None
        told: set[str] = set()
        if len(states) == self._num_ranks:
            told.update(state.state for state in states)
        if told == {"drained"}:
            return "drained", None
        returncode = self._process.poll()
        if returncode is None and not self._is_failing():
            return ("held" if self._is_held(states) else _while_alive(told)), None
        if returncode == 0:
            return "finished", None
        dead = frozenset() if self._rescue is None else self._rescue.first_dead
        return "failed", first_failure(self._workdir / ERRORS, self._launcher_tail(), dead)

    def _is_held(self, states: list[RankState]) -> bool:
        """All ranks wait after the same step, and the limit that was said last lets them."""
        limit = self._control.limit
        held = {state.step for state in states if state.state == "held"}
        is_all = len(states) == self._num_ranks == sum(s.state == "held" for s in states)
        return is_all and len(held) == 1 and limit is not None and limit <= min(held)

    def _is_failing(self) -> bool:
        """A rank has failed and the others have had time to do what is to be done then.

        They say what it did to them, and stage what they have. torchrun would give a survivor that
        hangs in a collective thirty seconds.
        """
        dead = self._dead()
        if self._failing_since is None:
            if not dead and not any((self._workdir / ERRORS).glob("rank-*.json")):
                return False
            self._failing_since = self._world.monotonic()
        if not self._have_done_all(dead, self._world.monotonic() - self._failing_since):
            return False
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return True

    def _dead(self) -> set[int]:
        """Ranks that have ended, and not as they should."""
        if self._rescue is None:
            return set()
        errors = self._workdir / ERRORS
        ended = self._rescue.dead()
        return {rank for rank in ended if not (errors / f"rank-{rank}{DONE_SUFFIX}").exists()}

    def _have_done_all(self, dead: Collection[int], failing_s: float) -> bool:
        if self._rescue is None or self._control.limit is not None:
            return failing_s >= FAILURE_GRACE_S
        if not self._rescue.is_over(dead, self._newest_staged()[0]):
            return False
        self._rescue.end_ranks()
        waited_s = self._world.monotonic() - (self._rescue.ended_at or 0.0)
        return (self._workdir / ERRORS / LAUNCH_FILE).exists() or waited_s >= LAUNCHER_S

    def _states(self) -> list[RankState]:
        paths = (state_file(self._node_dir, rank) for rank in self._ranks)
        return [s for path in paths if (s := self._read(path, RankState)) is not None]

    def _newest_staged(self) -> tuple[int | None, bool]:
        """The newest step that every rank holds, and whether none of them runs another."""
        complete: dict[int, bool] | None = None
        for rank in self._ranks:
            slots = (*range(NUM_SLOTS), RESCUE_SLOT)
            paths = [staged_file(self._node_dir, rank, slot) for slot in slots]
            heads = [h for path in paths if (h := self._read(path, StagedHead)) is not None]
            steps = {head.step: head.is_last for head in heads}
            if complete is None:
                complete = steps
            else:
                complete = {s: last and steps[s] for s, last in complete.items() if s in steps}
        if not complete:
            return None, False
        newest = max(complete)
        return newest, complete[newest]

    def _read(self, path: Path, kind: type[T]) -> T | None:
        """A small file, parsed again only when it was replaced."""
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns)
            known = self._files.get(path)
            if known is None or known[0] != stamp:
                known = (stamp, from_json(path.read_bytes(), kind, what=path.name))
                self._files[path] = known
        except FileNotFoundError:
            return None
        assert isinstance(known[1], kind)
        return known[1]

    def _launcher_tail(self) -> str:
        path = self._workdir / LOGS / LAUNCHER_LOG
        return "\n".join(path.read_text(errors="replace").splitlines()[-20:])


def _while_alive(told: set[str]) -> RanksState:
    """``finished`` ranks still run: what follows a script's loop is part of it."""
    if told == {"gate"}:
        return "gate"
    return "running" if told and "gate" not in told else "starting"


def _go(restore: Restore | None) -> Go:
    if restore is None:
        return Go()
    return Go(restore.step, restore.manifest_key, restore.manifest_digest)
