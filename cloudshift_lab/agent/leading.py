"""The ranks and the savers of all nodes, as the agent of node 0 sees and leads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cloudshift_lab.agent.failures import is_peer_lost
from cloudshift_lab.agent.nodes import LOOK_EVERY_S, Line, Seen
from cloudshift_lab.agent.protocols import RankError, RanksState, RanksView, Restore
from cloudshift_lab.agent.torchrun import Meeting, TorchrunRanks
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import Outcome
from cloudshift_lab.core.errors import NodesMissing
from cloudshift_lab.core.world import World

LAST_WORDS_S = 6.0
PROOF_S = 60.0
_COMMON: dict[RanksState, RanksState] = {
    "gate": "starting", "drained": "running", "finished": "running",
}  # fmt: skip
"""States that count only once all nodes are in them, and what is said until then."""


class LedRanks:
    """Implements ``RanksProtocol`` for several nodes: our own ranks, and word to the followers.

    Ranks start when the agents of all nodes are there. Orders to running ranks need only reach
    ours: the ranks themselves agree. A node that loses its agent loses its ranks, and with them
    all fail; until they have trained they are started anew as soon as that node is back.

    Args:
        local: The ranks of this node.
        line: To the followers.
        world: Clock.
    """

    def __init__(self, local: TorchrunRanks, line: Line, world: World) -> None:
        self._local = local
        self._line = line
        self._world = world
        self._is_wanted = False
        self._agents: list[str] | None = None
        self._failed_at: float | None = None
        self._failure: RanksView | None = None
        self._state: RanksState = "absent"

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        self.kill()
        self._local.prepare(restore, standby=standby)
        self._is_wanted = True

    def restart(self) -> None:
        """As ``start``: what the ranks of other nodes had staged is not kept."""
        self.start(None, standby=True)

    def go(self, restore: Restore | None, limit: int | None = None) -> None:
        self._local.go(restore, limit)
        self._share()

    def limit(self, step: int | None) -> None:
        self._local.limit(step)
        self._share()

    def request_drain(self) -> None:
        self._local.request_drain()
        self._share()

    def capture(self) -> None:
        self._local.capture()
        self._share()

    def release(self, step: int) -> None:
        self._local.release(step)
        self._share()

    def poll(self) -> RanksView:
        if self._failure is not None:
            return self._failure
        if not self._is_wanted:
            return self._local.poll()
        followers = self._line.followers()
        self._launch_if_due(followers)
        view = self._local.poll()
        if self._agents is None:
            return replace(view, state="starting", nodes_up=_num_up(followers))
        return self._combined(view, followers)

    def kill(self) -> None:
        self._local.kill()
        self._is_wanted, self._agents, self._failed_at = False, None, None
        self._failure = None
        self._line.say(is_up=False)

    # -- starting ---------------------------------------------------------------------------------

    def _share(self) -> None:
        self._line.say(control=self._local.control)

    def _launch_if_due(self, followers: list[Seen | None]) -> None:
        """Launch when all agents are there; again when one was replaced before ranks trained."""
        agents = [one.status.agent for one in followers if one is not None]
        if len(agents) < len(followers) or agents == self._agents:
            return
        if self._agents is not None:
            if self._state not in ("starting", "gate"):
                return
            self._local.prepare_again()
        meeting = Meeting("127.0.0.1", self._local.free_port())
        self._line.say(
            start=self._line.word.start + 1, is_up=True, address=meeting.address,
            port=meeting.port, control=self._local.control, save_step=None,
        )  # fmt: skip
        self._local.launch(meeting)
        self._agents, self._failed_at = agents, None

    # -- what all nodes are together --------------------------------------------------------------

    def _combined(self, view: RanksView, followers: list[Seen | None]) -> RanksView:
        start = self._line.word.start
        theirs = [one for one in followers if one is not None and one.status.start == start]
        if view.state == "failed" or any(one.status.ranks == "failed" for one in theirs):
            return self._failing(view, followers, theirs)
        states = {one.status.ranks for one in theirs}
        is_common = len(theirs) == len(followers) and states <= {view.state}
        state = view.state if is_common else _COMMON.get(view.state, view.state)
        self._state = state
        steps = [view.staged_step, *(one.status.staged_step for one in theirs)]
        staged = [step for step in steps if step is not None]
        is_staged = len(staged) == len(followers) + 1
        return replace(
            view,
            state=state,
            staged_step=min(staged) if is_staged else None,
            staged_last=is_staged and len(set(staged)) == 1 and view.staged_last
            and all(one.status.staged_last for one in theirs),
            nodes_up=_num_up(followers),
        )  # fmt: skip

    def _failing(
        self, view: RanksView, followers: list[Seen | None], theirs: list[Seen]
    ) -> RanksView:
        """Failed, once every node has said why or has had the time to: one may know the cause."""
        now = self._world.monotonic()
        self._failed_at = now if self._failed_at is None else self._failed_at
        told = [one for one in theirs if one.status.ranks == "failed"]
        is_told = view.state == "failed" and len(told) == len(followers)
        if not is_told and now - self._failed_at < LAST_WORDS_S:
            return replace(view, state=self._state, error=None, nodes_up=_num_up(followers))
        self._local.kill()
        silent = sum(one is None or one.at < self._failed_at for one in followers)
        error = _cause([view.error, *(_error_of(one) for one in told)], silent, len(followers) + 1)
        num_up = len(followers) + 1 - silent
        self._failure = replace(view, state="failed", error=error, nodes_up=num_up)
        return self._failure


class LedSaver:
    """Implements ``SaverProtocol``: our share by our own saver, the others' by word to them.

    Args:
        own: The saver of this node, which gathers the others' shares and seals.
        line: To the followers.
    """

    def __init__(self, own: SaverProcess, line: Line) -> None:
        self._own = own
        self._line = line

    @property
    def busy(self) -> bool:
        return self._own.busy

    def start(self, step: int, *, standalone: bool = False) -> None:
        number = self._line.word.save + 1
        self._line.say(save=number, save_step=step, save_standalone=standalone)
        self._own.start(step, self._line.word.incarnation, standalone=standalone)

    def poll(self) -> Outcome | None:
        return self._own.poll()

    def abandon(self) -> None:
        self._line.say(save_step=None)
        self._own.abandon()

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        self._line.say(manifest_key=manifest_key, manifest_digest=manifest_digest)
        self._own.learn(manifest_key, manifest_digest)

    def close(self) -> None:
        self._own.close()


def prove_with(
    line: Line, sealed: Checkpoint, own: Callable[[], tuple[str, ...]], world: World, *,
    talk: Callable[[], None],
) -> tuple[str, ...]:  # fmt: skip
    """What the ranks of all nodes, which all wait meanwhile, have staged otherwise than sealed.

    Args:
        line: To the followers, which compare at the same time.
        sealed: The step that all have staged.
        own: Compares this node's share.
        world: Clock.
        talk: Called often while we wait for them: whoever watches us hears that we live.

    Returns:
        Names of what differs; of a node that gave no answer, that.
    """
    number = line.word.proof + 1
    line.say(
        proof=number, proof_step=sealed.step,
        sealed_key=sealed.manifest_key, sealed_digest=sealed.manifest_digest,
    )  # fmt: skip
    found = set(own())
    until = world.monotonic() + PROOF_S
    while True:
        followers = line.followers()
        given = [one for one in followers if one is not None and one.status.proof == number]
        if len(given) == len(followers):
            return tuple(sorted(found.union(*(one.status.different for one in given))))
        if world.monotonic() > until:
            return (*sorted(found), "the share of a node that gave no answer")
        talk()
        world.sleep(LOOK_EVERY_S)


def _num_up(followers: list[Seen | None]) -> int:
    return 1 + sum(one is not None for one in followers)


def _error_of(one: Seen) -> RankError:
    status = one.status
    return RankError(status.error_rank, status.error or "its ranks failed", status.traceback or "")


def _cause(errors: list[RankError | None], num_silent: int, num_nodes: int) -> RankError | None:
    """Why all failed: what a rank did itself, or a node that is gone, or what is left."""
    told = [error for error in errors if error is not None]
    own = [error for error in told if not is_peer_lost(error)]
    if own:
        return own[0]
    if num_silent:
        return RankError(
            None,
            f"{NodesMissing.__name__}: {num_silent} of {num_nodes} nodes are gone, and the ranks "
            "failed with them; go on with fewer nodes, or elsewhere",
        )
    return told[0] if told else None
