"""How good each committed step was, beside the log, so that the next owner knows the best ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.log import LogRecord
from cloudshift_lab.storage.store import Store


class _Document(msgspec.Struct, frozen=True):
    """Per manifest hash the figure of its step; None: it was no finite number."""

    figures: dict[str, float | None]


class Figures:
    """What ``keep="best=N"`` goes by, smaller is better; in ``runs/<run>/figures.json``.

    It is a note, not a proof: a step whose figure is missing is kept. Only the owner writes it.

    Args:
        store: The run's own.
        run_id: Whose steps.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._key = f"runs/{run_id}/figures.json"
        self._known: dict[str, float] = {}
        self._has_read = self._is_news = False

    def learn(self, manifest_digest: str, figure: float) -> None:
        """How good the step of this manifest is."""
        self._known[manifest_digest] = figure
        self._is_news = True

    def per_step(self, commits: Sequence[LogRecord]) -> dict[int, float]:
        """The figures of steps that exist, as far as they are known here or were noted before.

        Raises:
            Corrupt: The note is damaged; said once, then it counts as empty.
            Unavailable: The store does not answer.
        """
        self._read()
        known = {c.step: self._known.get(str(c.manifest_digest)) for c in commits}
        return {s: figure for s, figure in known.items() if s is not None and figure is not None}

    def note(self, commits: Sequence[LogRecord]) -> None:
        """Write down what is news, of the steps that exist.

        Raises:
            CloudshiftError: As the store or ``per_step`` reported; it is tried again next time.
        """
        if not self._is_news:
            return
        self._read()
        exist = {str(c.manifest_digest) for c in commits}
        self._known = {digest: f for digest, f in self._known.items() if digest in exist}
        plain = {d: f if math.isfinite(f) else None for d, f in self._known.items()}
        self._store.put(self._key, to_json(_Document(plain)))
        self._is_news = False

    def _read(self) -> None:
        if self._has_read:
            return
        try:
            data = self._store.get(self._key)
        except NotFound:
            self._has_read = True
            return
        self._has_read = True
        noted = from_json(data, _Document, what=self._key).figures
        before = {d: math.nan if figure is None else figure for d, figure in noted.items()}
        self._known = {**before, **self._known}
