"""Google Cloud: a preempted machine, heard at once by a long poll; it has 30 seconds left then."""

from __future__ import annotations

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.notices import Notice
from cloudshift_lab.engines.notices_http import Answer, MetadataClient, refused

EVERY_S = 1.0
LEAD_S = 30.0
WAITS_S = 60.0
_PREEMPTED = "/computeMetadata/v1/instance/preempted"
_HEADERS = {"Metadata-Flavor": "Google"}
_ADVICE = "look whether this machine may read its metadata"


class GcpNotices:
    """Implements ``Dialect``: the first question is answered at once, later ones upon news.

    Google says that a machine is preempted, not when it goes.

    Args:
        client: Of the machine's metadata server.
        world: Clock.
        every_s: Seconds between two questions; news are heard at once all the same.
        lead_s: Seconds that are left when it is said; more where the machine was made with a
            longer notice.
        waits_s: How long one question waits for news, seconds.
    """

    def __init__(
        self,
        client: MetadataClient,
        world: World,
        *,
        every_s: float = EVERY_S,
        lead_s: float = LEAD_S,
        waits_s: float = WAITS_S,
    ) -> None:
        self._client = client
        self._world = world
        self._lead_s = lead_s
        self.waits_s = waits_s
        self._etag: str | None = None
        self._num = 0
        self._is_said = False
        self.every_s = every_s

    def look(self) -> tuple[Notice, ...]:
        etag, self._etag = self._etag, None
        answer = self._ask(etag)
        is_preempted = self._is_preempted(answer)
        self._num += is_preempted and not self._is_said
        self._is_said = is_preempted
        self._etag = answer.etag
        if not is_preempted:
            return ()
        return (
            Notice(
                notice_id=f"gcp-preempted-{self._num}",
                heard_at=self._world.monotonic(),
                left_s=self._lead_s,
                says="Google Cloud has preempted this machine",
                simulated=answer.simulated,
            ),
        )

    def acknowledge(self, notice: Notice) -> None:
        """Google wants no answer."""

    def close(self) -> None:
        self._client.close()

    def _is_preempted(self, answer: Answer) -> bool:
        word = answer.text.upper()
        if word not in ("TRUE", "FALSE"):
            raise Unavailable(
                f"the metadata service at {self._client.place} says neither TRUE nor FALSE; "
                "asking again"
            )
        return word == "TRUE"

    def _ask(self, etag: str | None) -> Answer:
        waits_s = 0.0 if etag is None else self.waits_s
        query = (
            ""
            if etag is None
            else f"?wait_for_change=true&last_etag={etag}&timeout_sec={waits_s:g}"
        )
        answer = self._client.ask("GET", _PREEMPTED + query, headers=_HEADERS, waits_s=waits_s)
        if answer.status != 200:
            raise refused(self._client, answer, "a preemption", _ADVICE)
        return answer
