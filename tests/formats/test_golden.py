"""Old checkpoints stay readable: by our reader, and by one written from FORMAT.md alone."""

import ast
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from cloudshift_lab.checkpoint import KnownChunks, open_run, stage_arrays, verify, write_rank
from cloudshift_lab.checkpoint.codecs import LEVELS
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import open_store

HERE = Path(__file__).parent
GOLDEN = HERE / "golden-v1"
GOLDEN_V2 = HERE / "golden-v2"
READER = runpy.run_path(str(HERE / "numpy_reader.py"))
ZSTD_READER = runpy.run_path(str(HERE / "zstd_reader.py"))
STATE = runpy.run_path(str(HERE / "golden_state.py"))
GOLDEN_DIGESTS = {
    GOLDEN: "3837405c9671a77cee207bfdb1d7138e7eb0cf364fef4402c6e021db9f3c6630",
    GOLDEN_V2: "42481f9ab4aa85ce18724237113c8df36f53e70797773d8e2ce363a314813311",
}
STEPS = pytest.mark.parametrize(
    "golden, step", [(GOLDEN, 1), (GOLDEN, 2), (GOLDEN_V2, 11), (GOLDEN_V2, 12)]
)


def expected_state(golden, step):
    return STATE["golden_state" if golden == GOLDEN else "golden_state_v2"](step)


def expected_leaves(golden, step, rank):
    return STATE["golden_leaves" if golden == GOLDEN else "golden_leaves_v2"](step, rank)


def assert_same_bytes(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@STEPS
def test_our_reader_opens_every_golden_step(golden, step):
    checkpoint = open_run(f"file://{golden}", "golden", step)
    expected = expected_state(golden, step)
    assert checkpoint.names() == tuple(sorted(expected))
    for name, (dtype, values) in expected.items():
        assert checkpoint.spec(name).dtype == dtype
        assert_same_bytes(checkpoint.tensor(name), values)
    for rank in (0, 1):
        assert repr(checkpoint.leaves(rank)) == repr(expected_leaves(golden, step, rank))


@STEPS
def test_a_reader_written_from_the_format_page_reads_the_same(golden, step):
    tensors, leaves = READER["read_step"](golden, "golden", step)
    expected = expected_state(golden, step)
    assert set(tensors) == set(expected)
    for name, (_, values) in expected.items():
        assert_same_bytes(tensors[name], values)
    assert repr(leaves) == repr({r: expected_leaves(golden, step, r) for r in (0, 1)})


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd command line is not installed")
@STEPS
def test_the_zstd_command_line_and_a_json_parser_are_enough_to_read_a_step(golden, step):
    tensors, leaves = ZSTD_READER["read_step"](golden, "golden", step)
    expected = expected_state(golden, step)
    assert set(tensors) == set(expected)
    for name, (dtype, values) in expected.items():
        assert tensors[name] == (dtype, values.shape, values.tobytes())
    assert repr(leaves) == repr({r: expected_leaves(golden, step, r) for r in (0, 1)})


def test_the_zstd_reader_imports_only_the_standard_library():
    tree = ast.parse((HERE / "zstd_reader.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_every_codec_and_both_versions_are_in_a_golden_checkpoint():
    found = [
        open_run(f"file://{golden}", "golden", step)
        for golden, step in ((GOLDEN, 1), (GOLDEN_V2, 12))
    ]
    assert {c.manifest.version for c in found} == {1, 2}
    assert {chunk.codec for c in found for chunk in c.locations()} == set(LEVELS)
    skips = {o.skip for c in found for chunk in c.locations() for o in chunk.refs}
    assert len(skips) > 1


def test_the_page_reader_uses_none_of_our_code():
    code = (
        "import runpy, sys; from pathlib import Path;"
        "runpy.run_path(sys.argv[1])['read_step'](Path(sys.argv[2]), 'golden');"
        "ours = ('cloudshift_lab', 'torch', 'msgspec', 'safetensors');"
        "assert not [m for m in sys.modules if m.startswith(ours)]"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE / "numpy_reader.py"), str(GOLDEN)],
        capture_output=True, text=True, timeout=60, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_page_reader_notices_a_flipped_bit(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "copy")
    pack = sorted((tmp_path / "copy" / "packs").rglob("*.pack"))[0]
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    with pytest.raises((AssertionError, zstandard.ZstdError)):
        READER["read_step"](tmp_path / "copy", "golden", 1)


@STEPS
def test_golden_steps_pass_both_levels_of_verification(golden, step):
    store = open_store(f"file://{golden}")
    checkpoint = open_run(store, "golden", step)
    for level in (1, 2):
        report = verify(
            store, "golden", checkpoint.manifest_key, checkpoint.manifest_digest, level=level
        )
        assert report.ok, report.problems


def test_the_second_golden_step_uses_packs_of_the_first():
    first, second = (open_run(f"file://{GOLDEN}", "golden", step) for step in (1, 2))
    assert set(first.packs()) & set(second.packs())


def test_todays_writer_still_finds_the_golden_chunks():
    """Grid and chunk identity must not drift: only cells cut by the golden ranks are new."""
    golden = open_run(f"file://{GOLDEN}", "golden", 2)
    values = STATE["golden_state"](2)
    arrays = {"weight": values["weight"][1], "counts": values["counts"][1]}
    known = KnownChunks.from_checkpoint(golden)
    written = write_rank(
        MemoryStore(), "new", stage_arrays(arrays, step=1), generation=1, known=known
    )
    whole = write_rank(MemoryStore(), "new", stage_arrays(arrays, step=1), generation=1)
    assert 0 < written.new_bytes < whole.new_bytes


@pytest.mark.parametrize("golden", GOLDEN_DIGESTS)
def test_the_golden_checkpoints_were_never_edited(golden):
    tree = blake3()
    for path in sorted(p for p in golden.rglob("*") if p.is_file()):
        tree.update(path.relative_to(golden).as_posix().encode() + b"\0" + path.read_bytes())
    assert tree.hexdigest() == GOLDEN_DIGESTS[golden]
