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
