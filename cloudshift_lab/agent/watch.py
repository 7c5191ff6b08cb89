"""What the agent that owns the run says of itself, read by the standby that is to follow it."""

from __future__ import annotations

from cloudshift_lab.core.errors import NotFound, Unavailable
from cloudshift_lab.core.orders import AgentState, AgentStatus, status_key
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

WATCH_EVERY_S = 0.25
MAX_LOSSES = 4096
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0


class SourceWatch:
    """Remembers the source's losses while it trains: its status holds the newest 64 only.

    ``step`` is the newest step that the source has said to have done, ``state`` its newest state.

    Args:
        store: The source's store.
        job: Ours; the source's generation is the newest one before it.
        world: Clock.
    """

    def __init__(self, store: Store, job: JobSpec, world: World) -> None:
        self._store = store
        self._job = job
        self._world = world
        self._generation: int | None = None
        self._look_at = float("-inf")
        self._pause_s = FIRST_PAUSE_S
        self.step: int | None = None
        self.state: AgentState | None = None
        self.losses: dict[int, float] = {}

    def tick(self) -> None:
        """Read the source's status, when it is time; less and less often while it is away.

        Raises:
            Corrupt: It does not parse.
            Unavailable, Denied: As the store reported.
        """
        if self._world.monotonic() < self._look_at:
            return
        self._look_at = self._world.monotonic() + WATCH_EVERY_S
        try:
            self._look()
        except Unavailable:
            self._look_at = self._world.monotonic() + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            raise
        self._pause_s = FIRST_PAUSE_S

    def _look(self) -> None:
        if self._generation is None:
            self._generation = self._find()
        if self._generation is None:
            return
        key = status_key(self._job.run_id, self._generation)
        try:
            status = from_json(self._store.get(key), AgentStatus, what=key)
        except NotFound:
            return
        self.step, self.state = status.step, status.state
        self.losses.update(status.losses)
        for step in sorted(self.losses)[:-MAX_LOSSES]:
            del self.losses[step]

    def _find(self) -> int | None:
        records = RunLog(self._store, self._job.run_id, self._world).sync().records
        acquired = (record.generation for record in records if record.kind == "acquire")
        return max((g for g in acquired if g < self._job.generation), default=None)
