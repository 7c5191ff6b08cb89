"""Which objects must stay: what living commits and pins name, told by the records alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cloudshift_lab.checkpoint.gc import Pin
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.sim.faulty_store import Mutation
from cloudshift_lab.storage.log import LogRecord


class Keepsake:
    """Objects by what keeps them. A forgotten step keeps nothing, a pinned one everything."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], frozenset[str]] = {}
        self._by_step: dict[tuple[str, str, int], set[str]] = {}
        self._by_pin: dict[tuple[str, str], str] = {}

    def learn(self, url: str, manifest_key: str, keys: Iterable[str]) -> None:
        """Every object that a manifest leads to."""
        self._keys[url, manifest_key] = frozenset(keys)

    def keep(self, url: str, run_id: str, commit: LogRecord) -> None:
        """A commit landed."""
        step = (url, run_id, commit.step or 0)
        self._by_step.setdefault(step, set()).add(commit.manifest_key or "")

    def forget(self, url: str, run_id: str, steps: Collection[int]) -> None:
        """A forget record landed."""
        for step in steps:
            self._by_step.pop((url, run_id, step), None)

    def see_pin(self, mutation: Mutation) -> None:
        """A pin was set, checked or taken out; one that was not checked promises nothing yet."""
        place = (mutation.url, mutation.key)
        self._by_pin.pop(place, None)
        if mutation.data is not None:
            pin = from_json(mutation.data, Pin, what=mutation.key)
            if pin.checked:
                self._by_pin[place] = pin.manifest_key

    def names(self, url: str, key: str) -> bool:
        """Whether an object must stay as it is."""
        living = {(at, manifest) for (at, _, _), found in self._by_step.items()
                  for manifest in found if at == url}  # fmt: skip
        living |= {(at, manifest) for (at, _), manifest in self._by_pin.items() if at == url}
        return any(key in self._keys.get(place, ()) for place in living)
