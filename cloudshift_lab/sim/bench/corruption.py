"""Silent corruption: flip a bit or cut an object off, restore, and see whether anybody notices."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.sim.bench import gpt, ours, regimes, rivals
from cloudshift_lab.sim.bench.regimes import Snapshot
from cloudshift_lab.sim.bench.rows import Row, Say, Size, exactly, row
from cloudshift_lab.sim.scheduler import derived_random
from cloudshift_lab.storage.memory import MemoryStore

Outcome = Literal["detected", "harmless", "silent", "unexplained"]
_NUM_OURS = {"full": 1000, "tiny": 60}
_NUM_DCP = {"full": 200, "tiny": 12}
_SHAPES = {
    "full": gpt.Shape(layers=1, dim=128, heads=4, vocab=512, block=32, batch=4),
    "tiny": gpt.Shape(layers=1, dim=48, heads=2, vocab=128, block=16, batch=2),
}
_UNEXPLAINED = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Damage every kind of object of ours, and DCP's data files, one damage at a time."""
    say("training and saving a small GPT, twice")
    older, newer = _states(_SHAPES[size])
    mine = _Ours(older, newer)
    by_kind = mine.run(_NUM_OURS[size], say)
    theirs = _dcp(newer.tensors, _NUM_DCP[size], say)
    total = sum(by_kind.values(), Counter[Outcome]())
    about = ", ".join(
        f"{kind} {sum(found.values())} ({found['harmless']} harmless)"
        for kind, found in sorted(by_kind.items())
    )
    loud = total["detected"] + total["harmless"]
    return (
        row("ours: silent corruptions", total["silent"], "cases", goal=exactly(0),
            note=f"{sum(total.values())} random flips and truncations of what restoring a step of "
            f"{format_bytes(sum(t.nbytes for t in newer.tensors.values()))} reads: {about}"),
        row("ours: errors that say nothing", total["unexplained"], "cases", goal=exactly(0)),
        row("ours: detected, or without effect", loud, "cases", goal=exactly(_NUM_OURS[size])),
        row("ours: of these without effect", total["harmless"], "cases",
            note="in bytes that say nothing of the state, such as the date in a log record"),
        row("DCP: silent corruptions", theirs["silent"], "cases",
            note=f"{sum(theirs.values())} of the same in its data files; its metadata is a pickle "
            "and was left alone"),
        row("DCP: detected", theirs["detected"], "cases"),
        row("DCP: without effect", theirs["harmless"], "cases"),
    )  # fmt: skip


def _states(shape: gpt.Shape) -> tuple[Snapshot, Snapshot]:
    """Two states a step apart, with half-precision copies, integers, a mask and a scalar.

    So the newer one has chunks of every codec, and some that refer to the older step.
    """
    model = gpt.build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    training = gpt.Training(model, optimizer, gpt.corpus(shape.vocab, 200_000), shape)
    states = []
    for _ in range(2):
        training.step()
        state, leaves = regimes.snapshot(training)
        state |= {
            f"copy/{name}": value.detach().bfloat16() for name, value in model.named_parameters()
        }
        state["seen"] = torch.arange(3000) * training.num_steps
        state["mask"] = torch.arange(501) % 3 == 0
        state["rng"] = torch.get_rng_state()
        state["rare"] = _rarely_changed(training.num_steps)
        states.append(Snapshot(state, leaves))
    return states[0], states[1]


def _rarely_changed(step: int) -> torch.Tensor:
    """Half-precision weights of which a step changes few: stored as differences."""
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    weight[:, ::16] *= 1 + step / 8
    return weight.bfloat16()


class _Ours:
    """Two committed steps in one store; the newer may refer to the older."""

    def __init__(self, older: Snapshot, newer: Snapshot) -> None:
        self._expected, self._leaves = newer
        self._store = MemoryStore("memory://bench")
        ours.save(self._store, older.tensors, 1, older.leaves)
        base = open_run(self._store, ours.RUN)
        ours.save(self._store, newer.tensors, 2, newer.leaves, base=base)
        needed = [
            *open_run(self._store, ours.RUN).object_keys(),
            *self._store.list("runs/bench/log"),
        ]
        self._objects = {key: self._store.get(key) for key in needed}

    def run(self, number: int, say: Say) -> dict[str, Counter[Outcome]]:
        """Damage kinds of objects in turns; outcomes by kind."""
        draw = derived_random(0, "corruption", "ours")
        kinds: dict[str, list[str]] = {}
        for key in self._objects:
            kinds.setdefault(kind_of(key), []).append(key)
        found: dict[str, Counter[Outcome]] = {kind: Counter() for kind in kinds}
        for n in range(number):
            kind = sorted(kinds)[n % len(kinds)]
            key = draw.choice(kinds[kind])
            self._store.put(key, damaged(self._objects[key], draw))
            found[kind][self._restored()] += 1
            self._store.put(key, self._objects[key])
            if n % 100 == 99:
                say(f"ours: {n + 1} of {number}")
        return found

    def _restored(self) -> Outcome:
        tensors = {name: torch.zeros_like(value) for name, value in self._expected.items()}
        try:
            checkpoint = open_run(self._store, ours.RUN)
            ours.restore(checkpoint, tensors)
            leaves = checkpoint.leaves(0)
        except CloudshiftError:
            return "detected"
        except _UNEXPLAINED:
            return "unexplained"
        same = checkpoint.step == 2 and leaves == self._leaves
        return "silent" if not same or ours.num_different(tensors, self._expected) else "harmless"


def kind_of(key: str) -> str:
    """What an object of a step or its run's log is."""
    name = key.rsplit("/", 1)[-1]
    if key.startswith("packs/"):
        return "pack"
    if "/log/" in key:
        return "log"
    if name.startswith("rank-"):
        return "chunk table" if name.endswith(".index") else "rank record"
    return "manifest"


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One bit flipped, or, every fourth time, cut off at a random place."""
    if draw.random() < 0.25:
        return data[: draw.randrange(len(data))]
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _dcp(state: Mapping[str, torch.Tensor], number: int, say: Say) -> Counter[Outcome]:
    """The same damage to DCP's data files, read back by ``dcp.load``."""
    draw = derived_random(0, "corruption", "dcp")
    found: Counter[Outcome] = Counter()
    with tempfile.TemporaryDirectory() as name, rivals.group_of_one():
        folder = Path(name)
        rivals.dcp_save(state, folder)
        files = sorted(folder.glob("*.distcp"))
        for n in range(number):
            file = draw.choice(files)
            sound = file.read_bytes()
            file.write_bytes(damaged(sound, draw))
            found[_loaded(folder, state)] += 1
            file.write_bytes(sound)
            if n % 100 == 99:
                say(f"DCP: {n + 1} of {number}")
    return found


def _loaded(folder: Path, expected: Mapping[str, torch.Tensor]) -> Outcome:
    tensors = {name: torch.zeros_like(value) for name, value in expected.items()}
    try:
        rivals.dcp_load(tensors, rivals.FileSystemReader(folder))
    except (rivals.CheckpointException, RuntimeError, *_UNEXPLAINED):
        return "detected"
    return "silent" if ours.num_different(tensors, expected) else "harmless"
