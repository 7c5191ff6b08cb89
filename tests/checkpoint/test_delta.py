import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudshift_lab.checkpoint import (
    BoxRequest,
    KnownChunks,
    Staged,
    TensorSpec,
    copy_plan,
    open_checkpoint,
    seal,
    stage_arrays,
    verify,
    write_rank,
)
from cloudshift_lab.checkpoint.boxes import whole
from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    DERIVED,
    LEVELS,
    WORDS,
    XOR_PLANES_ZSTD,
    decode_sparse,
    encode,
    encode_sparse,
    entropy_floor,
)
from cloudshift_lab.checkpoint.delta import decode_chunk, needed
from cloudshift_lab.checkpoint.derived import encode_derived, round_half
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES
from cloudshift_lab.checkpoint.index import ChunkLocation, Operand, read_index, write_index
from cloudshift_lab.checkpoint.layout import ObjectRef
from cloudshift_lab.checkpoint.replay import Step, encode_v, encode_w, replayed_w, w_scalars
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"
RNG = np.random.default_rng(5)
BETAS = (0.9, 0.95)


def stage_state(state, step, leaves=None):
    """Arrays whose names begin with ``half`` are bfloat16 bits."""
    staged = stage_arrays(state, step=step, leaves=leaves)
    boxes = tuple(
        msgspec.structs.replace(box, dtype="bfloat16") if box.name.startswith("half") else box
        for box in staged.boxes
    )
    catalog = tuple(TensorSpec(b.name, b.dtype, b.global_shape) for b in boxes)
    return Staged(step, 0, 1, boxes, staged.buffers, leaves, catalog)


def save_state(store, state, step, *, leaves=None, base=None, known=None, threads=1):
    written = write_rank(
        store, RUN, stage_state(state, step, leaves), generation=1, base=base, threads=threads,
        known=None if known is None else KnownChunks.from_checkpoint(known),
    )  # fmt: skip
    sealed = seal(store, RUN, step, generation=1, world_size=1, written=[written])
    checkpoint = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    return checkpoint, written


def assert_whole(store, checkpoint, state):
    for name, array in state.items():
        assert checkpoint.tensor(name).tobytes() == array.tobytes()
    requests = [BoxRequest(name, *whole(array.shape)) for name, array in state.items()]
    for found, array in zip(checkpoint.read_many(requests), state.values(), strict=True):
        assert found.tobytes() == array.tobytes()
    report = verify(store, RUN, checkpoint.manifest_key, checkpoint.manifest_digest)
    assert report.ok, report.problems


def codecs_of(checkpoint):
    return {chunk.codec for chunk in checkpoint.locations()}


def normal(*shape, scale=0.02):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def bf16(array):
    return round_half(array.reshape(-1), "bfloat16").reshape(array.shape)


def adamw_leaves(names, lr=6e-4):
    values = {
        "lr": lr, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False,
        "decoupled_weight_decay": True,
    }  # fmt: skip
    return {"optimizer": {"state": {}, "groups": [{"names": names, "values": values}]}}


def fresh_state(shapes):
    state = {}
    for name, shape in shapes.items():
        zeros = np.zeros(shape, np.float32)
        state |= {
            f"model/{name}": normal(*shape),
            f"optimizer/{name}/exp_avg": zeros,
            f"optimizer/{name}/exp_avg_sq": zeros,
        }
    return state


def trained(state, number, lr=6e-4):
    """One AdamW step with noise for a gradient."""
    after = {}
    for name in [key.removeprefix("model/") for key in state if key.startswith("model/")]:
        m, v = (state[f"optimizer/{name}/exp_avg{part}"] for part in ("", "_sq"))
        grad = normal(*m.shape, scale=1e-3)
        m = m + np.float32(1 - BETAS[0]) * (grad - m)
        v = v * np.float32(BETAS[1]) + (np.float32(1 - BETAS[1]) * grad) * grad
        scalars = w_scalars(Step(lr, *BETAS, 1e-8, 0.1, number))
        after |= {
            f"model/{name}": replayed_w(m, v, state[f"model/{name}"], scalars, 0),
            f"optimizer/{name}/exp_avg": m,
            f"optimizer/{name}/exp_avg_sq": v,
            f"optimizer/{name}/step": np.array(number, np.float32),
        }
    return after


SHAPES = {"a.weight": (700, 640), "b.weight": (90, 77)}


def two_steps():
    state = fresh_state(SHAPES)
    for number in range(1, 12):
        state = trained(state, number)
    return state, trained(state, 12)


# -- what gains and what does not -----------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_one_adamw_step_later_at_least_70_percent_need_not_travel(threads):
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    delta, written = save_state(
        store, after, 12, leaves=adamw_leaves(list(SHAPES)), base=base, known=base, threads=threads
    )
    assert {ADAMW_V, ADAMW_W} <= codecs_of(delta)
    assert written.new_bytes <= 0.3 * written.raw_bytes
    assert delta.manifest.version == 2
    assert set(base.packs()) < set(delta.packs())
    assert_whole(store, delta, after)


def test_a_learning_rate_that_a_scheduler_moved_after_the_step_is_found_in_the_base():
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    moved = adamw_leaves(list(SHAPES), lr=5e-4)
    delta, written = save_state(store, after, 12, leaves=moved, base=base)
    assert written.new_bytes <= 0.3 * written.raw_bytes
    assert_whole(store, delta, after)


def test_a_step_that_adamw_did_not_make_is_stored_all_the_same():
    before, after = two_steps()
    after["model/a.weight"] = after["model/a.weight"] + normal(700, 640, scale=1e-3)
    after["optimizer/b.weight/exp_avg_sq"] = np.abs(normal(90, 77))
    after["model/b.weight"][3, 4] = np.nan
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    delta, _ = save_state(store, after, 12, leaves=adamw_leaves(list(SHAPES)), base=base)
    assert_whole(store, delta, after)


@pytest.mark.parametrize(
    "leaves",
    [None, {"optimizer": 3}, {"optimizer": {"groups": [{"names": ["a.weight"], "values": None}]}},
     {"optimizer": {"groups": [{"names": ["a.weight"], "values": {"lr": "x", "betas": (0, 1)}}]}}],
)  # fmt: skip
def test_leaves_that_name_no_adamw_give_no_replay(leaves):
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=leaves)
    delta, _ = save_state(store, after, 12, leaves=leaves, base=base)
    assert codecs_of(delta).isdisjoint({ADAMW_V, ADAMW_W})
    assert_whole(store, delta, after)


def test_two_steps_later_nothing_is_replayed():
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    delta, _ = save_state(store, after, 13, leaves=adamw_leaves(list(SHAPES)), base=base)
    assert codecs_of(delta).isdisjoint({ADAMW_V, ADAMW_W})
    assert_whole(store, delta, after)


def test_a_rounded_copy_of_a_master_is_stored_as_a_reference():
    master = normal(640, 700)
    state = {"half": bf16(master), "master": master, "h": master.astype(np.float16)}
    store = MemoryStore()
    _, written_alone = save_state(store, {"master": master}, 1)
    both, written = save_state(store, state, 1)
    assert written.new_bytes - written_alone.new_bytes < 100
    assert DERIVED in codecs_of(both)
    assert_whole(store, both, state)


def test_a_copy_that_differs_in_one_element_is_stored_in_full():
    master = normal(64, 640)
    half = bf16(master)
    half[7, 77] ^= 1
    state = {"half": half, "master": master}
    store = MemoryStore()
    checkpoint, _ = save_state(store, state, 1)
    assert DERIVED not in codecs_of(checkpoint)
    assert_whole(store, checkpoint, state)


def test_a_copy_of_replayed_weights_is_a_reference_too():
    before, after = two_steps()
    before["half"], after["half"] = bf16(before["model/a.weight"]), bf16(after["model/a.weight"])
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    delta, _ = save_state(
        store, after, 12, leaves=adamw_leaves(list(SHAPES)), base=base, known=base
    )
    assert {LEVELS[c] for c in codecs_of(delta)} == {0, 1, 2, 3}
    assert_whole(store, delta, after)


def test_a_fine_tune_of_half_precision_weights_sends_what_changed():
    old = bf16(normal(900, 800))
    changed = RNG.random(old.shape) < 0.05
    new = old + changed.astype(np.uint16)
    store = MemoryStore()
    base, _ = save_state(store, {"half": old}, 1)
    delta, written = save_state(store, {"half": new}, 9, base=base, known=base)
    assert codecs_of(delta) >= {XOR_PLANES_ZSTD}
    assert written.new_bytes < 0.05 * written.raw_bytes
    floor = entropy_floor((old ^ new).reshape(-1).view(np.uint8), ELEMENT_TYPES["bfloat16"])
    assert written.new_bytes < floor + 0.01 * written.raw_bytes
    assert_whole(store, delta, {"half": new})


def test_weights_that_have_nothing_to_do_with_the_base_are_coded_directly():
    store = MemoryStore()
    base, _ = save_state(store, {"w": normal(500, 640)}, 1)
    fresh = {"w": normal(500, 640)}
    delta, _ = save_state(store, fresh, 5, base=base, known=base)
    assert delta.manifest.version == 1
    assert set(base.packs()).isdisjoint(delta.packs())
    assert_whole(store, delta, fresh)


def test_a_delta_to_a_delta_goes_to_the_keyframe_instead():
    old = bf16(normal(900, 800))
    steps = [old, old.copy(), old.copy()]
    steps[1][::7, 5] += 1
    steps[2][::7, 5] += 1
    steps[2][::9, 9] += 1
    store = MemoryStore()
    base = None
    for number, half in enumerate(steps):
        base, written = save_state(store, {"half": half}, number, base=base, known=base)
        assert_whole(store, base, {"half": half})
    assert written.new_bytes < 0.05 * written.raw_bytes
    for chunk in base.locations():
        assert all(LEVELS[c.codec] == 0 for operand in chunk.refs for c in operand.chunks)


def test_one_small_delta_does_not_drag_a_large_pack_along():
    big = {"w": normal(1500, 1024), "half": bf16(normal(40, 100))}
    store = MemoryStore()
    base, _ = save_state(store, big, 1)
    half = big["half"].copy()
    half[0, 0] += 1
    after = {"w": normal(1500, 1024), "half": half}
    delta, _ = save_state(store, after, 2, base=base, known=base)
    assert set(base.packs()).isdisjoint(delta.packs())


def test_a_damaged_base_costs_bytes_but_not_the_save():
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    for key, (_, size) in base.packs().items():
        store.put(key, bytes(size))
    delta, _ = save_state(store, after, 12, leaves=adamw_leaves(list(SHAPES)), base=base)
    assert_whole(store, delta, after)


def test_a_base_in_a_dead_pack_is_not_referred_to():
    before, after = two_steps()
    store = MemoryStore()
    base, _ = save_state(store, before, 11, leaves=adamw_leaves(list(SHAPES)))
    dead = frozenset(digest for digest, _ in base.packs().values())
    written = write_rank(
        store, RUN, stage_state(after, 12, adamw_leaves(list(SHAPES))), generation=1, base=base,
        known=KnownChunks.from_checkpoint(base), dead_packs=dead,
    )  # fmt: skip
    sealed = seal(store, RUN, 12, generation=1, world_size=1, written=[written])
    delta = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    assert set(base.packs()).isdisjoint(delta.packs())
    assert_whole(store, delta, after)


def test_a_copy_of_a_step_with_deltas_takes_the_bases_packs():
    before, after = two_steps()
    source, target = MemoryStore("memory://a"), MemoryStore("memory://b")
    base, _ = save_state(source, before, 11, leaves=adamw_leaves(list(SHAPES)))
    delta, _ = save_state(source, after, 12, leaves=adamw_leaves(list(SHAPES)), base=base)
    plan = copy_plan(source, target, RUN, delta.manifest_key, delta.manifest_digest)
    assert set(plan.packs) >= set(base.packs())
    for key in (*plan.packs, *plan.records):
        target.put(key, source.get(key))
    copied = open_checkpoint(target, RUN, delta.manifest_key, digest=delta.manifest_digest)
    assert_whole(target, copied, after)


def test_a_chunk_of_a_delta_step_can_be_reused_with_what_it_refers_to():
    old = bf16(normal(900, 800))
    new = old.copy()
    new[::3, 7] += 1
    store = MemoryStore()
    base, _ = save_state(store, {"half": old}, 1)
    delta, _ = save_state(store, {"half": new}, 2, base=base)
    again, written = save_state(store, {"half": new}, 3, known=delta)
    assert written.new_bytes == 0
    assert again.manifest.version == 2
    assert set(again.packs()) == set(delta.packs())
    assert_whole(store, again, {"half": new})


# -- any bytes ------------------------------------------------------------------------------------


@given(
    st.sampled_from([2, 4, 8]),
    hnp.arrays(np.uint8, st.integers(0, 300), elements=st.sampled_from([0, 0, 0, 0, 1, 7, 255])),
    st.sampled_from([1, 40]),
)
def test_sparse_words_come_back_exactly(width, seed, times):
    words = np.frombuffer(seed.tobytes() * width * times, WORDS[width])
    blob = encode_sparse(words)
    assert decode_sparse(blob, width, words.nbytes).tobytes() == words.tobytes()


@given(st.data())
def test_a_damaged_sparse_blob_decodes_to_the_right_length_or_is_corrupt(data):
    words = (np.arange(3000, dtype="<u4") % 50 == 0) * np.uint32(0x30001)
    blob = bytearray(encode_sparse(words))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(blob), len(blob) - 1, 21, 3, 0]))
    try:
        found = decode_sparse(bytes(blob[:cut]), 4, words.nbytes)
    except Corrupt:
        return
    assert found.nbytes == words.nbytes


@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES))
@pytest.mark.parametrize("change", ["none", "one", "some", "all", "signs"])
def test_a_delta_of_any_dtype_is_exact_and_never_larger_than_no_delta(dtype, change):
    kind = ELEMENT_TYPES[dtype]
    size = 24_576
    old = RNG.integers(0, 2, size, dtype=np.uint8) if dtype == "bool" else _odd_bytes(size)
    new = old.copy()
    if change == "one":
        new[100] ^= 1
    elif change == "some":
        new[:: 8 * kind.itemsize] ^= 1
    elif change == "all":
        new ^= 1
    elif change == "signs" and dtype != "bool":
        new[kind.itemsize - 1 :: kind.itemsize] ^= 0x80
    arrays = [bits.view(kind.numpy) for bits in (old, new)]
    stored = []
    for with_base in (False, True):
        store = MemoryStore()
        staged = [_staged_as(dtype, array, step) for step, array in enumerate(arrays)]
        first = write_rank(store, RUN, staged[0], generation=1)
        sealed = seal(store, RUN, 0, generation=1, world_size=1, written=[first])
        base = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
        second = write_rank(store, RUN, staged[1], generation=1, base=base if with_base else None)
        stored.append(second.new_bytes)
        sealed = seal(store, RUN, 1, generation=1, world_size=1, written=[second])
        found = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
        assert found.tensor("x").tobytes() == new.tobytes()
    assert stored[1] <= stored[0]


def _odd_bytes(size):
    """NaN payloads, infinities, -0.0, denormals and ordinary weights, as every float sees them."""
    odd = np.array([0x7FF8000000000001, 0xFFF0000000000123, 1 << 63, 0x7FF0 << 48, 1], "<u8")
    bits = RNG.integers(0, 256, size, dtype=np.uint8)
    bits[: odd.nbytes] = odd.view(np.uint8)
    return bits


def _staged_as(dtype, array, step):
    staged = stage_arrays({"x": array}, step=step)
    box = msgspec.structs.replace(staged.boxes[0], dtype=dtype)
    return Staged(
        step, 0, 1, (box,), staged.buffers, None, (TensorSpec("x", dtype, box.global_shape),)
    )


def test_zero_dimensional_and_empty_tensors_go_through_a_save_with_a_base():
    state = {
        "scalar": np.array(-0.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "half.empty": np.zeros((0, 4), np.uint16),
        "half": bf16(normal(300, 100)),
        "nan": np.array([np.nan, -np.nan, -0.0], np.float64),
    }
    store = MemoryStore()
    base, _ = save_state(store, state, 1)
    after = state | {"scalar": np.array(0.0, np.float32), "half": state["half"] + np.uint16(1)}
    delta, _ = save_state(store, after, 2, base=base)
    assert XOR_PLANES_ZSTD in codecs_of(delta)
    assert_whole(store, delta, after)


def test_the_floor_is_the_entropy_of_the_planes():
    kind = ELEMENT_TYPES["bfloat16"]
    noise = RNG.integers(0, 256, 1 << 16, dtype=np.uint8)
    assert entropy_floor(noise, kind) == pytest.approx(len(noise), rel=0.01)
    assert entropy_floor(np.zeros(4096, np.uint8), kind) == 0
    weights = bf16(normal(1 << 16)).view(np.uint8)
    floor = entropy_floor(weights, kind)
    assert floor < len(encode(weights, kind).blob) < floor + 0.01 * len(weights)


# -- hostile tables -------------------------------------------------------------------------------


def chunk(number, codec=0, refs=(), raw_len=64):
    blob_len = 1 if codec == DERIVED else min(raw_len, 32)
    return ChunkLocation(
        bytes([number]) * 32, raw_len, codec, 2, "ab" * 32, 10_000, 100 * number, blob_len, 0, refs
    )


def table_with(rows, **columns):
    """The table of these rows, with single numbers of its columns replaced."""
    from safetensors.numpy import load, save

    packs = (ObjectRef("ab" * 32, 10_000),)
    found = load(write_index(rows, packs))
    for name, (place, value) in columns.items():
        found[name][place] = value
    return read_index(save(found), packs, "x.index")


def rows_with_a_delta():
    base = chunk(1)
    return [base, chunk(2, XOR_PLANES_ZSTD, (Operand((base,), 0, 64),))]


def test_a_table_with_deltas_comes_back():
    rows = rows_with_a_delta()
    table = table_with(rows)
    assert table.rows() == rows
    assert table.num_bases == 0
    alone = table_with(rows[1:])
    assert alone.rows() == rows[::-1]
    assert alone.num_bases == 1
    assert needed(alone.rows()) == rows[:1]


@pytest.mark.parametrize(
    "column, place, value",
    [
        ("refs", (1, 0), 1),  # itself
        ("refs", (1, 0), 9),  # no such row
        ("refs", (1, 0), 2**32 - 1),  # no base at all
        ("refs", (1, 1), 0),  # one too many
        ("refs", (0, 0), 0),  # a plain chunk with a base
        ("codec", 0, XOR_PLANES_ZSTD),  # the base is a delta without a base
        ("codec", 1, ADAMW_W),  # too few operands
        ("raw_len", 0, 62),  # the base is too short
        ("skip", 1, 2**32 - 1),  # begins behind the base's end
        ("bases", 0, 7),  # more bases than rows
    ],
)
def test_a_table_whose_references_make_no_sense_is_refused(column, place, value):
    with pytest.raises(Corrupt, match="use another step"):
        table_with(rows_with_a_delta(), **{column: (place, value)})


def test_deltas_that_refer_to_each_other_are_refused():
    rows = rows_with_a_delta()
    rows.append(chunk(3, XOR_PLANES_ZSTD, (Operand((rows[0],), 0, 64),)))
    with pytest.raises(Corrupt, match="itself such a delta"):
        table_with(rows, refs=(([1, 2], [0, 0]), [2, 1]))


def test_a_delta_to_a_delta_is_refused():
    rows = rows_with_a_delta()
    rows.append(chunk(3, XOR_PLANES_ZSTD, (Operand((rows[0],), 0, 64),)))
    with pytest.raises(Corrupt, match="itself such a delta"):
        table_with(rows, refs=((2, 0), 1))


def test_an_unknown_codec_is_refused_when_it_is_read():
    unknown = chunk(1)._replace(codec=99)
    with pytest.raises(Corrupt, match="update cloudshift-lab"):
        decode_chunk(unknown, bytes(32), {}.__getitem__)


def test_a_huge_chunk_is_refused_before_memory_is_taken():
    with pytest.raises(Corrupt, match="points outside"):
        table_with(rows_with_a_delta(), raw_len=(1, 2**31))


def test_a_base_of_another_length_than_it_says_is_refused():
    _, delta = rows_with_a_delta()
    with pytest.raises(Corrupt, match="another length"):
        decode_chunk(delta, encode_sparse(np.zeros(32, "<u2")), lambda _: np.zeros(62, np.uint8))


@pytest.mark.parametrize("codec", [ADAMW_V, ADAMW_W, DERIVED, XOR_PLANES_ZSTD])
@pytest.mark.parametrize("blob", [b"", b"\x09", b"\x00" * 30])
def test_malformed_blobs_of_every_delta_codec_are_corrupt(codec, blob):
    lengths = {DERIVED: (128,), XOR_PLANES_ZSTD: (64,)}.get(codec, (64,) * 3)
    refs = tuple(Operand((chunk(1, raw_len=n),), 0, n) for n in lengths)
    location = chunk(2, codec, refs)._replace(width=4 if len(refs) == 3 else 2)
    with pytest.raises(Corrupt):
        decode_chunk(location, blob, lambda _: np.zeros(lengths[0], np.uint8))


def test_a_prediction_with_a_nan_is_not_used_since_its_payload_is_the_hardwares():
    ones = np.ones(64, np.float32)
    broken = ones.copy()
    broken[3] = np.nan
    step = Step(6e-4, *BETAS, 1e-8, 0.1, 5)
    assert encode_v(ones, ones, ones, ones, step) is not None
    assert encode_v(ones, ones, ones, broken, step) is None
    assert encode_w(ones, ones, broken, ones, step, order=0) is None
    assert encode_derived(broken.view(np.uint8)[:128], broken.view(np.uint8), "bfloat16") is None
