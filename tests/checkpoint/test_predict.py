import numpy as np
import pytest

from cloudshift_lab.checkpoint import (
    KnownChunks,
    open_checkpoint,
    seal,
    stage_arrays,
    write_rank,
)
from cloudshift_lab.checkpoint.predict import NUM_SAMPLES, predict_move, predict_step
from cloudshift_lab.checkpoint.replay import Step, replayed_w, w_scalars
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"
BETAS = (0.9, 0.95)
NAMES = ["a", "b"]
LEAVES = {
    "optimizer": {
        "groups": [
            {
                "names": NAMES,
                "values": {
                    "lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False,
                },
            }
        ]
    }
}  # fmt: skip


class CountingStore(MemoryStore):
    """Counts the bytes read from packs."""

    read_bytes = 0

    def get(self, key, *, start=None, end=None):
        data = super().get(key, start=start, end=end)
        if key.startswith("packs/"):
            self.read_bytes += len(data)
        return data


def save(store, state, step, *, leaves=None, base=None):
    known = None if base is None else KnownChunks.from_checkpoint(base)
    staged = stage_arrays(state, step=step, leaves=leaves)
    written = write_rank(store, RUN, staged, generation=1, base=base, known=known)
    sealed = seal(store, RUN, step, generation=1, world_size=1, written=[written])
    opened = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    return opened, written.new_bytes


def adamw_state(rng, step, before=None):
    state = {}
    for name in NAMES:
        grad = (rng.standard_normal((500, 400)) * 1e-3).astype(np.float32)
        zeros = np.zeros_like(grad)
        old = before or {
            f"model/{name}": (rng.standard_normal((500, 400)) * 0.02).astype(np.float32),
            f"optimizer/{name}/exp_avg": zeros, f"optimizer/{name}/exp_avg_sq": zeros,
        }  # fmt: skip
        m, v = (old[f"optimizer/{name}/exp_avg{part}"] for part in ("", "_sq"))
        m = m + np.float32(0.1) * (grad - m)
        v = v * np.float32(0.95) + (np.float32(0.05) * grad) * grad
        scalars = w_scalars(Step(1e-3, *BETAS, 1e-8, 0.0, step))
        state |= {
            f"model/{name}": replayed_w(m, v, old[f"model/{name}"], scalars, 0),
            f"optimizer/{name}/exp_avg": m, f"optimizer/{name}/exp_avg_sq": v,
            f"optimizer/{name}/step": np.array(step, np.float32),
        }  # fmt: skip
    return state


def test_a_move_takes_what_the_newest_step_takes():
    rng = np.random.default_rng(1)
    store = CountingStore()
    newest, new_bytes = save(store, adamw_state(rng, 1), 1)
    store.read_bytes = 0
    found = predict_move(newest)
    assert found.expected_bytes == new_bytes
    assert found.low <= found.expected_bytes <= found.high <= found.full_bytes
    assert found.full_bytes == newest.manifest.raw_bytes
    assert store.read_bytes == 0


def test_one_step_of_adamw_is_predicted_within_its_bounds():
    rng = np.random.default_rng(2)
    store = MemoryStore()
    first = adamw_state(rng, 10)
    second = adamw_state(rng, 11, first)
    older, _ = save(store, first, 10, leaves=LEAVES)
    newest, _ = save(store, second, 11, leaves=LEAVES)
    found = predict_step(newest, older)
    third = adamw_state(rng, 12, second)
    _, new_bytes = save(store, third, 12, leaves=LEAVES, base=newest)
    assert found.low <= new_bytes <= found.high
    assert found.saved > 0.68
    assert {kind.how for kind in found.by_kind} >= {"replayed", "compressed"}


def test_a_hundred_steps_of_pre_training_promise_nothing_beyond_compression():
    rng = np.random.default_rng(3)
    store = MemoryStore()
    older, _ = save(store, adamw_state(rng, 10), 10, leaves=LEAVES)
    newest, _ = save(store, adamw_state(rng, 110), 110, leaves=LEAVES)
    found = predict_step(newest, older, steps_later=100)
    _, new_bytes = save(store, adamw_state(rng, 210), 210, leaves=LEAVES, base=newest)
    assert {kind.how for kind in found.by_kind} == {"compressed", "unchanged"}
    assert found.low <= new_bytes <= found.high


def test_what_did_not_change_is_expected_not_to_change():
    rng = np.random.default_rng(4)
    store = MemoryStore()
    frozen = rng.standard_normal((2000, 500)).astype(np.float32)
    adapter = rng.standard_normal((8, 5000)).astype(np.float32)
    older, _ = save(store, {"frozen": frozen, "adapter": adapter}, 1)
    newest, _ = save(store, {"frozen": frozen, "adapter": adapter * 1.1}, 2, base=older)
    found = predict_step(newest, older, steps_later=9)
    assert found.saved > 0.95
    _, new_bytes = save(store, {"frozen": frozen, "adapter": adapter * 1.2}, 3, base=newest)
    assert found.low <= new_bytes <= found.high


def test_slowly_moving_weights_are_predicted_as_differences_from_few_chunks():
    rng = np.random.default_rng(5)
    store = CountingStore()
    weights = [(rng.standard_normal((9000, 1024)) * 0.02).astype(np.float32)]
    for _ in range(2):
        noise = rng.standard_normal(weights[0].shape).astype(np.float32)
        weights.append(weights[-1] + np.float32(1e-6) * noise)
    older, _ = save(store, {"w": weights[0]}, 1)
    newest, _ = save(store, {"w": weights[1]}, 2)
    store.read_bytes = 0
    found = predict_step(newest, older, steps_later=5)
    assert store.read_bytes <= 2 * NUM_SAMPLES * 2**20
    assert [kind.how for kind in found.by_kind] == ["difference"]
    _, new_bytes = save(store, {"w": weights[2]}, 3, base=newest)
    assert found.low <= new_bytes <= found.high


@pytest.mark.parametrize("older", [False, True])
def test_kinds_add_up_to_the_whole_also_where_tensors_repeat(older):
    rng = np.random.default_rng(6)
    store = MemoryStore()
    array = rng.standard_normal((300, 300)).astype(np.float32)
    state = {"w": array, "tied": array, "empty": np.zeros((0, 3)), "n": np.arange(9000)}
    first, _ = save(store, state, 1)
    newest, _ = save(store, state | {"n": np.arange(9000) + 1}, 2, base=first)
    found = predict_step(newest, first if older else None)
    assert sum(kind.full_bytes for kind in found.by_kind) == found.full_bytes
    assert sum(kind.expected_bytes for kind in found.by_kind) == found.expected_bytes
    assert str(newest.step) in found.basis


def test_a_step_without_bytes_saves_nothing():
    newest, _ = save(MemoryStore(), {"empty": np.zeros((0, 3))}, 1)
    assert predict_step(newest).saved == 0
    assert predict_move(newest).full_bytes == 0
