"""A run of saves with every kind of change between them, thinned and collected on the way."""

import random

import numpy as np
import pytest

from cloudshift_lab.checkpoint import BoxRequest, KnownChunks, open_checkpoint, seal, write_rank
from cloudshift_lab.checkpoint import packer as packing
from cloudshift_lab.checkpoint.boxes import TensorSpec, whole
from cloudshift_lab.checkpoint.codecs import ADAMW_V, ADAMW_W, DERIVED, LEVELS, XOR_PLANES_ZSTD
from cloudshift_lab.checkpoint.derived import round_half
from cloudshift_lab.checkpoint.gc import collect
from cloudshift_lab.checkpoint.layout import PACK_BYTES
from cloudshift_lab.checkpoint.replay import Step, replayed_w, w_scalars
from cloudshift_lab.checkpoint.share import Staged, stage_arrays
from cloudshift_lab.checkpoint.tombs import tombstoned
from cloudshift_lab.checkpoint.verify import verify
from cloudshift_lab.core.world import RealWorld
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"
SHAPES = {"emb": (1200, 64), "a": (160, 128), "b": (160, 128)}
BETAS, EPS, DECAY, RATE = (0.9, 0.999), 1e-8, 0.01, 1e-3
KEPT = 3
LEAVES = {
    "optimizer": {
        "groups": [
            {
                "names": list(SHAPES),
                "values": {
                    "lr": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY,
                    "amsgrad": False, "decoupled_weight_decay": True,
                },
            }
        ]
    }
}  # fmt: skip


class Training:
    """Tensors of a job, and what may happen to them between two saves."""

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)
        self.chance = random.Random(seed)
        self.number = 0
        self.w = {name: self.normal(*shape, scale=0.05) for name, shape in SHAPES.items()}
        self.m = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.v = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.ping, self.pong = self.normal(300, 64), self.normal(300, 64)
        self.frozen = self.normal(500, 128)
        self.past = []

    def normal(self, *shape, scale=1.0):
        return (self.draw.standard_normal(shape) * scale).astype(np.float32)

    def go_on(self):
        """A few optimizer steps, then some of the odd things that programs do."""
        for _ in range(self.chance.choice([1, 1, 1, 2, 5])):
            self.step()
        for odd in (self.swap, self.touch, self.revert, self.spoil, self.reset):
            if self.chance.random() < 0.3:
                odd()

    def step(self):
        self.number += 1
        scalars = w_scalars(Step(RATE, *BETAS, EPS, DECAY, self.number))
        for name, shape in SHAPES.items():
            if self.chance.random() < 0.2:
                continue  # not in use in this step
            gradient = self.normal(*shape, scale=0.01)
            if name == "emb":
                gradient[self.chance.randrange(100, 1200) :] = 0
            m, v = self.m[name], self.v[name]
            m = m + np.float32(1 - BETAS[0]) * (gradient - m)
            v = v * np.float32(BETAS[1]) + (np.float32(1 - BETAS[1]) * gradient) * gradient
            self.m[name], self.v[name] = m, v
            self.w[name] = replayed_w(m, v, self.w[name], scalars, 0)

    def swap(self):
        self.ping, self.pong = self.pong, self.ping
        self.w["a"], self.w["b"] = self.w["b"], self.w["a"]

    def touch(self):
        for array in (self.ping, self.frozen):
            first = self.chance.randrange(len(array))
            array.view("<u4")[first : first + self.chance.randrange(1, 200)] ^= 1
        self.pong = self.ping.copy()
        self.pong.view("<u4")[::7] ^= 1

    def revert(self):
        if self.past:
            old = self.chance.choice(self.past)
            half = self.chance.choice([20, 160])
            self.w["a"] = np.concatenate([old["model/a"][:half], self.w["a"][half:]])

    def spoil(self):
        self.w["b"] = self.w["b"].copy()
        self.w["b"][self.chance.randrange(160), 3] = np.nan

    def reset(self):
        self.m["a"] = np.zeros_like(self.m["a"])

    def state(self):
        """A copy of everything; names that begin with ``half`` are bfloat16 bits."""
        found = {"ping": self.ping, "pong": self.pong, "frozen": self.frozen, "copy": self.w["a"]}
        for name in SHAPES:
            found |= {
                f"model/{name}": self.w[name],
                f"optimizer/{name}/exp_avg": self.m[name],
                f"optimizer/{name}/exp_avg_sq": self.v[name],
                f"optimizer/{name}/step": np.array(self.number, np.float32),
                f"half/{name}": round_half(self.w[name].reshape(-1), "bfloat16"),
            }
        found["half/16"] = self.w["a"].astype(np.float16)
        found = {name: array.copy() for name, array in found.items()}
        self.past = [*self.past[-3:], found]
        return found


def stage(state, step, rank, world_size):
    """Every rank has every other tensor."""
    staged = stage_arrays(state, step=step, leaves=LEAVES)
    spec = {b.name: "bfloat16" if b.dtype == "uint16" else b.dtype for b in staged.boxes}
    mine = [
        (type(b)(b.name, spec[b.name], b.global_shape, b.offset, b.shape), buffer)
        for number, (b, buffer) in enumerate(zip(staged.boxes, staged.buffers, strict=True))
        if number % world_size == rank
    ]
    catalog = tuple(TensorSpec(b.name, spec[b.name], b.global_shape) for b in staged.boxes)
    boxes, buffers = zip(*mine, strict=True)
    return Staged(step, rank, world_size, boxes, buffers, LEAVES, catalog)


class Run:
    """A log, its store and what was saved; only the newest steps are kept."""

    def __init__(self, chance):
        self.store = MemoryStore()
        self.log = RunLog(self.store, RUN, RealWorld())
        self.log.acquire(generation=1, owner="o", nonce="a")
        self.chance = chance
        self.base = None
        self.states = {}
        self.codecs = set()

    def save(self, state, step):
        world_size = self.chance.choice([1, 1, 1, 2])
        known = None if self.base is None else KnownChunks.from_checkpoint(self.base)
        written = [
            write_rank(
                self.store, RUN, stage(state, step, rank, world_size), generation=1, known=known,
                base=self.base, dead_packs=tombstoned(self.store),
                threads=self.chance.choice([1, 3]),
            )
            for rank in range(world_size)
        ]  # fmt: skip
        sealed = seal(self.store, RUN, step, generation=1, world_size=world_size, written=written)
        self.log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
        self.states[step] = state
        self.base = open_checkpoint(self.store, RUN, self.log.sync().commits[-1])
        self.codecs |= {row.codec for row in self.base.locations()}

    def thin(self):
        old = [commit.step for commit in self.log.sync().commits[:-KEPT]]
        if old:
            self.log.forget(steps=old, nonce=f"f{old[-1]}")
        self.states = {step: state for step, state in self.states.items() if step not in old}
        if self.chance.random() < 0.5:
            collect(self.store, grace_s=0, linger_s=self.chance.choice([0, 3600]))

    def check(self, commit):
        step, state = open_checkpoint(self.store, RUN, commit), self.states[commit.step]
        assert set(step.names()) == set(state)
        requests = [BoxRequest(name, *whole(array.shape)) for name, array in state.items()]
        found = step.read_many(requests, threads=self.chance.choice([1, 3]))
        for (name, array), got in zip(state.items(), found, strict=True):
            assert got.tobytes() == array.tobytes(), (commit.step, name)
        name = self.chance.choice(list(state))
        assert step.tensor(name).tobytes() == state[name].tobytes()


@pytest.mark.parametrize("seed, pack_bytes", [(1, 300_000), (1, PACK_BYTES), (2, PACK_BYTES)])
def test_every_kept_step_of_a_changeful_run_comes_back_bit_by_bit(seed, pack_bytes, monkeypatch):
    monkeypatch.setattr(packing, "PACK_BYTES", pack_bytes)
    training = Training(seed)
    run = Run(training.chance)
    for _ in range(25):
        training.go_on()
        run.save(training.state(), training.number)
        run.thin()
        commits = run.log.sync().commits
        assert len(commits) <= KEPT
        run.check(training.chance.choice(list(commits)))
    newest = run.log.sync().commits[-1]
    assert verify(run.store, RUN, newest.manifest_key, newest.manifest_digest).ok
    assert run.codecs >= {XOR_PLANES_ZSTD, DERIVED, ADAMW_V, ADAMW_W}
    assert {LEVELS[codec] for codec in run.codecs} == {0, 1, 2, 3}
