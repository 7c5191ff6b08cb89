"""The values in the golden checkpoints, by integer arithmetic: no random generator to drift."""

import numpy as np


def mixed(count: int, salt: int) -> np.ndarray:
    """Deterministic pseudo-random uint64 words."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(32))


def golden_state(step: int) -> dict[str, tuple[str, np.ndarray]]:
    """Per tensor its dtype in the format and its values (bfloat16 as uint16)."""
    small = (mixed(40_000, step) % np.uint64(64)).astype(np.float32) / np.float32(-256)
    weight = (np.repeat(small, 4)[:150_000]).reshape(300, 500)
    specials = np.array(
        [0x7FF8000000000001, 0xFFF0000000000123, 0x8000000000000000, 0x7FF0000000000000, 1],
        dtype="<u8",
    ).view("<f8")
    table = (mixed(300 * 4 * 64, 7) % np.uint64(7)).astype("<u2") + np.uint16(0x3F80)
    return {
        "weight": ("float32", weight),
        "tied": ("float32", weight),
        "table.frozen": ("bfloat16", np.tile(table.reshape(300, 4, 64), (3, 1, 1))),
        "half": ("float16", np.linspace(-1, 1, 777).astype("<f2")),
        "specials": ("float64", specials),
        "noise": ("uint8", (mixed(3000, step) >> np.uint64(40)).astype(np.uint8)),
        "counts": ("int64", np.arange(-500, 2500, dtype="<i8").reshape(30, 100)),
        "mask": ("bool", (mixed(999, 3) % np.uint64(2)).astype(bool)),
        "wave": ("complex64", np.array([1 + 2j, -0.0 + 0j, 3 - 4j] * 40, dtype="<c8")),
        "step": ("float32", np.array(step, dtype="<f4")),
        "empty": ("int32", np.zeros((0, 7), dtype="<i4")),
    }


def golden_leaves(step: int, rank: int) -> dict[object, object]:
    return {
        "optimizer": {"betas": (0.9, 0.95), "lr": 6e-4, "limit": float("inf"), "foreach": None},
        "rng": {"torch": bytes(range(rank, rank + 40)), "numpy": 2**127 + rank},
        "groups": {0: ["weight"], 1: ["$odd", {"$t": "a key that looks like a tag"}]},
        "cursor": {"samples": 10**6 * step, "negative_zero": -0.0},
    }


BETAS, LEARNING_RATE, EPSILON, DECAY = (0.9, 0.95), 6e-4, 1e-8, 0.1


def golden_state_v2(step: int) -> dict[str, tuple[str, np.ndarray]]:
    """Steps 11 and 12 of a small job: an AdamW step lies between them, give or take some bits."""
    w, m, v = (trained_part(part, step) for part in range(3))
    master = np.full((700, 375), 0.5, dtype=np.float32)
    master[:, :9] = normalish(700 * 9, 5).reshape(700, 9)
    tuned = (mixed(120 * 160, 8) % np.uint64(9)).astype("<u2") + np.uint16(0x3F80)
    lot = mixed(120 * 160, 9) % np.uint64(100)
    tuned += ((lot < 30) + np.uint16(0x500) * (lot < 3)).astype("<u2") * np.uint16(step - 11)
    counts = np.arange(5000, dtype="<i8") + (np.arange(5000) % 50 == 0) * (step - 11)
    return {
        "model/weight": ("float32", w.reshape(80, 150)),
        "optimizer/weight/exp_avg": ("float32", m.reshape(80, 150)),
        "optimizer/weight/exp_avg_sq": ("float32", v.reshape(80, 150)),
        "optimizer/weight/step": ("float32", np.array(step, dtype="<f4")),
        "weight.half": ("float16", w.reshape(80, 150).astype("<f2")),
        "master": ("float32", master),
        "master.half": ("bfloat16", to_nearest_bfloat16(master)),
        "tuned": ("bfloat16", tuned.reshape(120, 160)),
        "counts": ("int64", counts),
        "bytes": ("uint8", (mixed(3000, step) >> np.uint64(40)).astype(np.uint8)),
    }


def to_nearest_bfloat16(array: np.ndarray) -> np.ndarray:
    bits = array.view("<u4").astype("<u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def trained_part(part: int, step: int) -> np.ndarray:
    """Weights, first or second moments: dyadic numbers, so that every machine makes the same."""
    w, m, v = (normalish(12_000, 40 + p) for p in range(3))
    v = v * v + np.float32(2**-20)
    if step == 11:
        return (w, m, v)[part]
    grad = normalish(12_000, 50)
    tenth, twentieth = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    m = m + tenth * (grad - m)
    v = v * np.float32(BETAS[1]) + (twentieth * grad) * grad
    if part < 2:
        w = w * np.float32(1 - LEARNING_RATE * DECAY)
        change = m * np.float32(-LEARNING_RATE / 0.7175704635189999)
        w = w + change / (np.sqrt(v) / np.float32(0.6779674861948495) + np.float32(EPSILON))
    return (w, m, v)[part]


def normalish(count: int, salt: int) -> np.ndarray:
    """Floats with few mantissa bits that are exactly sums of four uniform ones, about ±0.1."""
    quarters = mixed(4 * count, salt).reshape(4, count) % np.uint64(4096)
    total = quarters.astype(np.int64).sum(axis=0) - 8190
    return total.astype(np.float32) / np.float32(2**16)


def golden_leaves_v2(step: int, rank: int) -> dict[object, object]:
    values = {
        "lr": LEARNING_RATE, "betas": BETAS, "eps": EPSILON, "weight_decay": DECAY,
        "amsgrad": False, "decoupled_weight_decay": True,
    }  # fmt: skip
    return {"step": step, "optimizer": {"groups": [{"names": ["weight"], "values": values}]}}
