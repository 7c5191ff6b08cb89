"""What the nodes of one attempt tell each other through their store: the leader's word, and theirs.

::

    runs/<run>/nodes/<generation>.json           the leader's word, overwritten by it alone
    runs/<run>/status/<generation>.<node>.json   how a follower is, overwritten by it alone

Neither decides who owns the run: that is the log's. Liveness is judged by ``beat``, which grows
with every write, and the reader's own clock.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

import msgspec

from cloudshift_lab.agent.protocols import RanksState
from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import Control
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store

LOOK_EVERY_S = 0.2
BEAT_EVERY_S = 2.0
SILENCE_S = 12.0


class LeadWord(msgspec.Struct, frozen=True):
    """What the agent of node 0 wants of the others.

    ``lead`` names its process. ``start`` counts the starts of the ranks under it, which are to run
    while ``is_up`` and meet at ``address:port``. ``control`` is what its own ranks are told.
    ``save`` counts the saves it has begun, the newest is of ``save_step``, without deltas if it is
    ``save_standalone``. ``manifest_*`` name the newest commit. ``proof`` counts the times that the
    others were asked whether what they have staged of ``proof_step`` is what the manifest
    ``sealed_*`` in the source's store says.
    ``is_over``: the attempt has ended for those who follow this leader.
    """

    lead: str
    beat: int = 0
    is_over: bool = False
    start: int = 0
    is_up: bool = False
    address: str = ""
    port: int = 0
    control: Control = Control()
    save: int = 0
    save_step: int | None = None
    save_standalone: bool = False
    manifest_key: str | None = None
    manifest_digest: str | None = None
    proof: int = 0
    proof_step: int = -1
    sealed_key: str = ""
    sealed_digest: str = ""

    @property
    def incarnation(self) -> str:
        """Names one save by all nodes of one start of the ranks."""
        return f"{self.lead}.{self.start}.{self.save}"


class FollowerStatus(AgentStatus, frozen=True):
    """How a follower is.

    ``agent`` names its process, ``lead`` and ``start`` the leader and the start that it follows.
    ``ranks`` is the state of its ranks; ``staged_last``: none of them runs another step. ``proof``
    is the newest that it was asked for and has given, ``different`` names what it found.
    """

    agent: str = ""
    lead: str = ""
    start: int = 0
    ranks: RanksState = "absent"
    staged_last: bool = False
    proof: int = 0
    different: tuple[str, ...] = ()


def lead_key(run_id: str, generation: int) -> str:
    """Where the leader's word lies."""
    return f"runs/{run_id}/nodes/{generation}.json"


def follower_key(run_id: str, generation: int, node: int) -> str:
    """Where one follower's status lies."""
    return f"runs/{run_id}/status/{generation}.{node}.json"


@dataclass(frozen=True)
class Seen:
    """A follower's newest status, and when its beat was last seen to grow (monotonic seconds)."""

    status: FollowerStatus
    at: float


class Line:
    """The leader's line to its followers, in a thread of its own: no call waits for the store.

    Only making it does: the word of an earlier leader is replaced before there are followers.

    Args:
        store: The attempt's store.
        job: Which attempt; its placement says how many nodes there are.
        world: Clock and names.
    """

    def __init__(self, store: Store, job: JobSpec, world: World) -> None:
        self._store = store
        self._job = job
        self._world = world
        self._word = LeadWord(world.new_id("lead"))
        self._told: LeadWord | None = None
        self._told_at = float("-inf")
        self._seen: dict[int, Seen] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        with contextlib.suppress(CloudshiftError):  # said by the thread once the store is back
            self._tell()  # what an earlier leader said last is not for our followers
        self._thread = threading.Thread(target=self._talk, name="nodes", daemon=True)
        self._thread.start()

    @property
    def word(self) -> LeadWord:
        """What was said last."""
        return self._word

    def say(self, **changes: object) -> None:
        """Change the leader's word; it is told soon."""
        with self._lock:
            self._word = msgspec.structs.replace(self._word, **changes)

    def followers(self) -> list[Seen | None]:
        """Node 1 and so on: the newest word of each that follows us and is not silent."""
        now = self._world.monotonic()
        with self._lock:
            seen = [self._seen.get(node) for node in range(1, self._job.placement.nodes)]
        return [one if one is not None and now - one.at < SILENCE_S else None for one in seen]

    def close(self) -> None:
        """Say that the attempt is over, and stop; a store that is away leaves that to silence."""
        self._stop.set()
        self._thread.join()
        self.say(is_over=True, is_up=False)
        with contextlib.suppress(CloudshiftError):
            self._tell()

    def _talk(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            with contextlib.suppress(CloudshiftError):  # said and looked at again the next time
                self._tell()
                for node in range(1, self._job.placement.nodes):
                    self._look(node)

    def _tell(self) -> None:
        now = self._world.monotonic()
        with self._lock:
            word = self._word
            if word == self._told and now - self._told_at < BEAT_EVERY_S:
                return
            word = self._word = msgspec.structs.replace(word, beat=word.beat + 1)
        self._store.put(lead_key(self._job.run_id, self._job.generation), to_json(word))
        self._told, self._told_at = word, now

    def _look(self, node: int) -> None:
        key = follower_key(self._job.run_id, self._job.generation, node)
        try:
            status = from_json(self._store.get(key), FollowerStatus, what=key)
        except NotFound:
            return
        known = self._seen.get(node)
        if status.lead != self._word.lead:
            return
        if known is None or (known.status.agent, known.status.beat) != (status.agent, status.beat):
            with self._lock:
                self._seen[node] = Seen(status, self._world.monotonic())
