"""The agent of a node that does not lead: it runs its ranks and saves their share, as told."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloudshift_lab.agent.nodes import (
    BEAT_EVERY_S,
    LOOK_EVERY_S,
    FollowerStatus,
    LeadWord,
    follower_key,
    lead_key,
)
from cloudshift_lab.agent.protocols import RanksView
from cloudshift_lab.agent.torchrun import Meeting, TorchrunRanks
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import FailedAnswer
from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.orders import AgentState
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.migration.grace import OUTLIVED_S
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

LOG_EVERY_S = 5.0
LEAD_PATIENCE_S = 120.0
LEAD_SILENCE_S = 45.0
SAVE_AGAIN_S = 1.0
_STATES: dict[str, AgentState] = {
    "absent": "starting", "starting": "starting", "gate": "standby", "held": "running",
}  # fmt: skip


class Follower:
    """Owns the ranks of one node, and nothing of the run. Invariants:

    - its ranks run only for a leader whose beat grows, and only in a start it was there for;
    - it starts none, and ends those it has, once the log has passed its generation;
    - the last word of a leader that it does not follow is not for it: that may be a dead one's;
    - it commits nothing and gives no orders.

    Args:
        job: What to run; ``node`` is not 0.
        store: The attempt's store.
        world: Clock and names.
        ranks: The ranks of this node.
        saver: Uploads their share.
        prove: Names what the ranks have staged of a step otherwise than the manifest (key and
            digest) in the source's store says.
    """

    def __init__(
        self, job: JobSpec, *, store: Store, world: World, ranks: TorchrunRanks,
        saver: SaverProcess, prove: Callable[[int, str, str], tuple[str, ...]],
    ) -> None:  # fmt: skip
        self._job = job
        self._store = store
        self._world = world
        self._ranks = ranks
        self._saver = saver
        self._prove = prove
        self._log = RunLog(store, job.run_id, world)
        self._word: LeadWord | None = None
        self._heard_at = world.monotonic()
        self._seen_start = 0
        self._save = 0
        self._abandoned = 0
        self._learnt: str | None = None
        self._due_at: dict[str, float] = {}
        self._told: FollowerStatus | None = None
        self._told_at = float("-inf")
        self.finished = False
        self.status = FollowerStatus(
            run_id=job.run_id, generation=job.generation, state="starting", beat=0,
            at=world.now(), agent=world.new_id("follower"),
        )  # fmt: skip

    def stop(self) -> None:
        """End at once: the machine wants us gone, and the others cannot go on without us."""
        self._end("stopped", None)

    def notice(self, _name: str, within_s: float, says: str) -> bool:
        """Tell the leader that this machine goes; of several notices the earliest counts."""
        known, until = self.status.notice_until, self._world.now() + within_s
        if known is None or until < known:
            self.status = msgspec.structs.replace(
                self.status, notice_until=until, notice_from=says
            )  # fmt: skip
        return True

    def has_heeded(self, _name: str) -> bool:
        """Whether all is saved: the leader alone knows, so never."""
        return False

    def leave(self) -> None:
        """As ``stop``: only a leader hears when all is saved."""
        self.stop()

    def note(self, _topic: str, message: str) -> None:
        """Show a warning in the status."""
        kept = tuple(line for line in self.status.warnings if line != message)
        self.status = msgspec.structs.replace(self.status, warnings=(*kept, message)[-5:])

    def talk(self) -> None:
        """Show between two ticks that we live; for work that makes one tick long."""
        self._publish()

    def tick(self) -> None:
        """Do what is due now; returns soon, except for a store call."""
        for part in (self._check, self._listen, self._follow_saves, self._follow_proofs):
            if not self.finished:
                try:
                    part()
                except CloudshiftError as error:
                    self.note("store", error.message)
        self._outlive()
        self._show(self._ranks.poll())

    # -- following --------------------------------------------------------------------------------

    def _check(self) -> None:
        """End when the log has passed us: the ranks of a later generation may be training."""
        if not self._due("log", LOG_EVERY_S):
            return
        current = self._log.sync().generation
        if current > self._job.generation:
            self._end("fenced", f"Fenced: generation {current} owns the run now; this node stopped")

    def _listen(self) -> None:
        if not self._due("word", LOOK_EVERY_S):
            return
        key = lead_key(self._job.run_id, self._job.generation)
        known, now = self._word, self._world.monotonic()
        try:
            word = from_json(self._store.get(key), LeadWord, what=key)
        except NotFound:
            word = None
        except CloudshiftError:
            self._heard_at = now  # that we hear nothing is not the leader's silence
            raise
        follows = known is not None and word is not None and known.lead == word.lead
        if word is None or word == known or (word.is_over and not follows):
            patience_s = LEAD_PATIENCE_S if known is None else LEAD_SILENCE_S
            if now - self._heard_at > patience_s:
                self._end("stopped", "the leading node fell silent, so this one has stopped")
            return
        self._word, self._heard_at = word, now
        if word.is_over:
            self._end("stopped", None)
            return
        if not follows:
            self._meet(word)
        self._obey(word)

    def _meet(self, word: LeadWord) -> None:
        """Follow this leader from now on; starts that it began without us are not for us."""
        self._ranks.kill()
        self._seen_start, self._save = word.start, word.save
        self.status = msgspec.structs.replace(
            self.status, lead=word.lead, start=0, proof=word.proof
        )

    def _obey(self, word: LeadWord) -> None:
        if not word.is_up:
            self._ranks.kill()
        elif word.start > self._seen_start:
            self._seen_start = word.start
            self.status = msgspec.structs.replace(self.status, start=word.start)
            self._ranks.prepare_again(word.control)
            self._ranks.launch(Meeting(word.address, word.port))
        elif word.start == self.status.start:
            self._ranks.mirror(word.control)

    def _outlive(self) -> None:
        """Forget a notice once this machine is still there though its time is long over."""
        until = self.status.notice_until
        if until is not None and self._world.now() >= until + OUTLIVED_S:
            self.status = msgspec.structs.replace(self.status, notice_until=None)

    # -- saving -----------------------------------------------------------------------------------

    def _follow_saves(self) -> None:
        """Store our share of the step that the leader is saving, until it has begun another."""
        outcome = self._saver.poll()
        if isinstance(outcome, FailedAnswer):
            if self._abandoned != self._save:
                self.note("saver", outcome.message)
                self._due_at["save"] = self._world.monotonic() + SAVE_AGAIN_S
            self._save = 0
        word = self._word
        if word is None or word.start != self.status.start:
            return
        self._learn(word)
        if word.save == self._save or word.save_step is None:
            return
        if self._saver.busy:
            if self._abandoned != self._save:
                self._abandoned = self._save
                self._saver.abandon()
        elif self.status.staged_step == word.save_step and self._is_past("save"):
            self._save = word.save
            self._saver.start(word.save_step, word.incarnation, standalone=word.save_standalone)

    def _learn(self, word: LeadWord) -> None:
        if word.manifest_key is None or word.manifest_digest is None:
            return
        if word.manifest_key != self._learnt:
            self._learnt = word.manifest_key
            self._saver.learn(word.manifest_key, word.manifest_digest)

    def _follow_proofs(self) -> None:
        """Compare our share with what the source has sealed, once for each time we are asked."""
        word, status = self._word, self.status
        if word is None or word.proof == status.proof or word.start != status.start:
            return
        if status.staged_step != word.proof_step:
            return
        different = self._prove(word.proof_step, word.sealed_key, word.sealed_digest)
        self.status = msgspec.structs.replace(self.status, proof=word.proof, different=different)

    # -- status -----------------------------------------------------------------------------------

    def _end(self, state: AgentState, error: str | None) -> None:
        self._ranks.kill()
        self._saver.close()
        self.finished = True
        self.status = msgspec.structs.replace(self.status, state=state, error=error, ranks="absent")

    def _show(self, view: RanksView) -> None:
        """What the ranks are now, and of us what we have noted."""
        if not self.finished:
            failure = view.error
            self.status = msgspec.structs.replace(
                self.status,
                state=_STATES.get(view.state, view.state),
                ranks=view.state,
                step=view.step,
                staged_step=view.staged_step,
                staged_last=view.staged_last,
                error=failure and failure.message,
                error_rank=failure and failure.rank,
                traceback=failure and failure.traceback,
            )
        self._publish()

    def _publish(self) -> None:
        """On news, and now and then; a store that refuses is asked again."""
        now = self._world.monotonic()
        is_news = self._told is None or _gist(self._told) != _gist(self.status)
        if not is_news and now - self._told_at < BEAT_EVERY_S:
            return
        self.status = msgspec.structs.replace(
            self.status, beat=self.status.beat + 1, at=self._world.now()
        )
        job = self._job
        try:
            self._store.put(
                follower_key(job.run_id, job.generation, job.node), to_json(self.status)
            )
        except CloudshiftError as error:
            self.note("store", error.message)
        else:
            self._told, self._told_at = self.status, now

    def _is_past(self, name: str) -> bool:
        return self._world.monotonic() >= self._due_at.get(name, float("-inf"))

    def _due(self, name: str, every_s: float) -> bool:
        """Whether it is time for ``name``; if so, the next time is ``every_s`` from now."""
        if not self._is_past(name):
            return False
        self._due_at[name] = self._world.monotonic() + every_s
        return True


def _gist(status: FollowerStatus) -> FollowerStatus:
    """Everything whose change is told at once."""
    return msgspec.structs.replace(status, beat=0, at=0.0, step=None)
