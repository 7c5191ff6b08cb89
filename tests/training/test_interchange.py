"""To and from DCP, safetensors and state_dict files: bitwise both ways, and nothing hostile in."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - makes the hostile input that must be refused
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cloudshift_lab.checkpoint import open_run, seal, verify, write_rank
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.errors import CloudshiftError, Corrupt, NotFound, UsageError
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store, open_store
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.dcp import CasStorageReader, CasStorageWriter
from cloudshift_lab.training.interchange import (
    export_dcp,
    export_safetensors,
    export_state_dict,
    import_dcp,
    import_safetensors,
    main,
)
from cloudshift_lab.training.state import TrainingState
from cloudshift_lab.training.trusted import read_item, read_metadata

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",
)


class Tied(nn.Module):
    """Tied weights, a buffer, a bf16 part."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(31, 8)
        self.norm = nn.BatchNorm1d(8)
        self.low = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.head = nn.Linear(8, 31, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.low(self.norm(self.wte(x)).bfloat16()).float())


def trained(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.9))
    model(torch.randint(0, 31, (8,))).square().mean().backward()
    optimizer.step()
    return model, optimizer


def odd_tensors() -> dict[str, torch.Tensor]:
    return {
        "bf16": torch.randn(5, 3).bfloat16(),
        "fp8": torch.randn(9).to(torch.float8_e4m3fn),
        "fp8b": torch.randn(9).to(torch.float8_e5m2),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "bools": torch.tensor([True, False]),
        "strange": torch.tensor([float("nan"), -0.0, float("inf")]),
        "wide": torch.arange(3, dtype=torch.float64),
        "big": torch.arange(40_000).reshape(200, 200),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        raw_a, raw_b = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_a, raw_b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def blank(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    return [blank(item) for item in value] if isinstance(value, list) else None


def opened(path: Path) -> Any:
    return read_item(path.read_bytes(), path.name)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def full_state() -> dict[str, Any]:
    model, optimizer = trained()
    sd_model, sd_optim = get_state_dict(model, optimizer)
    return {
        "model": sd_model, "optim": sd_optim, "odd": odd_tensors(),
        "list": [torch.ones(2), {"x": torch.zeros(1)}], "step": 12, "note": ("a", 1.5),
    }  # fmt: skip


# -- round trips ----------------------------------------------------------------------------------


def test_a_dcp_checkpoint_comes_in_and_goes_out_bitwise(
    url: str, store: Store, tmp_path: Path
) -> None:
    state = full_state()
    dcp.save(state, checkpoint_id=str(tmp_path / "step-12"))
    seen: list[tuple[int, int]] = []
    done = import_dcp(
        tmp_path / "step-12", url, "imported", trusted=True,
        progress=lambda n, total: seen.append((n, total)),
    )  # fmt: skip
    assert (done.step, seen[-1][0]) == (12, done.raw_bytes)
    found = open_run(store, "imported")
    assert verify(store, "imported", found.manifest_key, found.manifest_digest).ok
    loaded = blank(state)
    dcp.load(loaded, storage_reader=CasStorageReader(url, "imported"))
    assert same(loaded, state)
    told: list[tuple[int, int]] = []
    export_dcp(url, "imported", tmp_path / "out", progress=lambda *n: told.append(n))
    again = blank(state)
    dcp.load(again, checkpoint_id=str(tmp_path / "out"))
    assert same(again, state)
    assert told[-1][0] == told[-1][1] > 0


def test_several_files_of_a_dcp_checkpoint_become_the_shares_of_as_many_ranks(
    url: str, store: Store, tmp_path: Path
) -> None:
    state = {f"t{i}": torch.randn(100) for i in range(6)}
    writer = dcp.FileSystemWriter(tmp_path / "src", thread_count=3)
    dcp.save(state, storage_writer=writer)
    import_dcp(tmp_path / "src", url, "imported", trusted=True)
    assert open_run(store, "imported").world_size == len(list((tmp_path / "src").glob("*.distcp")))
    loaded = blank(state)
    dcp.load(loaded, storage_reader=CasStorageReader(url, "imported"))
    assert same(loaded, state)


def test_safetensors_come_in_and_go_out_bitwise(url: str, tmp_path: Path) -> None:
    tensors = odd_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    done = import_safetensors(tmp_path / "model.safetensors", url, "st", trusted=True)
    assert (done.step, done.num_tensors) == (0, len(tensors))
    export_safetensors(url, "st", tmp_path / "out.safetensors")
    assert same(load_file(tmp_path / "out.safetensors"), tensors)
    wanted = blank(tensors)
    dcp.load(wanted, storage_reader=CasStorageReader(url, "st"))
    assert same(wanted, tensors)


def test_a_folder_of_safetensors_is_one_step_and_two_files_with_one_name_are_refused(
    url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "parts-30"
    folder.mkdir()
    save_file({"a": torch.ones(3)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, folder / "model-2.safetensors")
    done = import_safetensors(folder, url, "parts", trusted=True)
    assert (done.step, done.num_tensors) == (30, 2)
    save_file({"b": torch.zeros(2)}, folder / "model-3.safetensors")
    with pytest.raises(UsageError, match=r"both model-2.safetensors and model-3.safetensors"):
        import_safetensors(folder, url, "parts", trusted=True, step=31)


def test_what_dcp_saved_goes_out_as_a_plain_dictionary(url: str, tmp_path: Path) -> None:
    state = {**full_state(), "numpy": np.arange(3), "inner": (torch.ones(2), 3)}
    dcp.save(state, storage_writer=CasStorageWriter(url, "run", step=1))
    export_state_dict(url, "run", tmp_path / "state.pt")
    found = opened(tmp_path / "state.pt")
    assert same(found.pop("numpy"), torch.arange(3))
    del state["numpy"]
    assert same(found, state)


def session_step(store: Store, tmp_path: Path) -> tuple[Tied, torch.optim.Optimizer]:
    """A step as a training session saves it."""
    model, optimizer = trained()
    arena = Arena(tmp_path, 0, 1)
    state = TrainingState(model, optimizer, {}, rank=0, world_size=1)
    arena.stage(7, state.share(7), is_last=False)
    written = write_rank(store, "run-s", read_slot(tmp_path, 0, 7), generation=1)
    sealed = seal(store, "run-s", 7, generation=1, world_size=1, written=[written])
    log = RunLog(store, "run-s")
    log.acquire(generation=1, owner="o", nonce="a")
    log.commit(
        generation=1, step=7, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce="b",
    )  # fmt: skip
    return model, optimizer


def test_a_sessions_step_goes_out_as_what_plain_pytorch_loads(
    url: str, store: Store, tmp_path: Path
) -> None:
    model, optimizer = session_step(store, tmp_path)
    export_state_dict(url, "run-s", tmp_path / "state.pt")
    found = opened(tmp_path / "state.pt")
    fresh, fresh_optimizer = trained(seed=5)
    fresh.load_state_dict(found["model"])
    fresh_optimizer.load_state_dict(found["optimizer"])
    assert found["step"] == 7
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert same(fresh_optimizer.state_dict(), optimizer.state_dict())
    export_safetensors(url, "run-s", tmp_path / "model.safetensors")
    fresh.load_state_dict(blank(dict(fresh.state_dict())))
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))


def test_a_sessions_step_goes_out_to_dcp_as_get_state_dict_names_it(
    url: str, store: Store, tmp_path: Path
) -> None:
    model, optimizer = session_step(store, tmp_path)
    export_dcp(url, "run-s", tmp_path / "out")
    fresh, fresh_optimizer = trained(seed=5)
    sd_model, sd_optim = get_state_dict(fresh, fresh_optimizer)
    wanted = {"model": sd_model, "optimizer": sd_optim}
    dcp.load(wanted, checkpoint_id=str(tmp_path / "out"))
    set_state_dict(
        fresh, fresh_optimizer, model_state_dict=wanted["model"],
        optim_state_dict=wanted["optimizer"],
    )  # fmt: skip
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert same(fresh_optimizer.state_dict()["state"], optimizer.state_dict()["state"])


def test_an_import_into_a_run_that_has_the_step_is_refused(url: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "m.safetensors")
    import_safetensors(tmp_path / "m.safetensors", url, "st", trusted=True, step=3)
    with pytest.raises(UsageError, match="committed step 3 already"):
        import_safetensors(tmp_path / "m.safetensors", url, "st", trusted=True, step=3)
    import_safetensors(tmp_path / "m.safetensors", url, "st", trusted=True, step=4)


# -- what must not come in ------------------------------------------------------------------------


class Bomb:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("exploded"), "x"))


def test_nothing_comes_in_without_trust(url: str, tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(1)}, checkpoint_id=str(tmp_path / "src"))
    with pytest.raises(UsageError, match=r"partly pickle.*trusted=True \(--trust\)"):
        import_dcp(tmp_path / "src", url, "run")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="trusted=True"):
        import_safetensors(tmp_path / "a.safetensors", url, "run")
    assert not Path(url.removeprefix("file://")).exists()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    dcp.save({"a": torch.ones(4), "n": 3}, checkpoint_id=str(tmp_path / "src"))
    return tmp_path / "src"


def rewrite(source: Path, **changes: object) -> None:
    """Change the metadata, and every line of its storage table."""
    with (source / ".metadata").open("rb") as file:
        metadata: Metadata = pickle.Unpickler(file).load()
    for where in metadata.storage_data.values():
        for name, value in changes.items():
            object.__setattr__(where, name, value)
    (source / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a/b", ".metadata", ""])
def test_a_path_out_of_the_folder_is_refused(url: str, source: Path, name: str) -> None:
    (source.parent / "secret").write_bytes(b"x" * 5000)
    rewrite(source, relative_path=name)
    with pytest.raises(Corrupt, match="no file of it"):
        import_dcp(source, url, "run", trusted=True)


def test_a_link_out_of_the_folder_is_refused(url: str, source: Path) -> None:
    data = next(source.glob("*.distcp"))
    target = source.parent / "elsewhere"
    data.rename(target)
    data.symlink_to(target)
    with pytest.raises(Corrupt, match="no file of it"):
        import_dcp(source, url, "run", trusted=True)


@pytest.mark.parametrize(
    "changes", [{"offset": -1}, {"length": 10**12}, {"offset": 10**9}, {"length": None}]
)
def test_bytes_outside_of_a_file_are_refused(
    url: str, source: Path, changes: dict[str, Any]
) -> None:
    rewrite(source, **changes)
    with pytest.raises(Corrupt, match=r"lies nowhere|is cut off"):
        import_dcp(source, url, "run", trusted=True)


def test_a_pickle_bomb_in_the_metadata_does_not_go_off(
    url: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Corrupt, match="which no metadata needs"):
        import_dcp(source, url, "run", trusted=True)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PurePosixPath"),
    ],
)
def test_refused_metadata_leaves_the_process_as_it_was(
    source: Path, module: str, name: str
) -> None:
    found = getattr(sys.modules[module], name)
    evil = b"c" + f"{module}\n{name}\n".encode() + b"(N}S'evil'\nI1\nstb."
    (source / ".metadata").write_bytes(evil)
    with pytest.raises(Corrupt):
        read_metadata(source)
    assert not hasattr(found, "evil")


def test_a_pickle_bomb_in_an_item_does_not_go_off(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dcp.save({"a": torch.ones(4), "evil": Bomb()}, checkpoint_id=str(tmp_path / "src"))
    with pytest.raises(UsageError, match="'evil' is pickled Python and needs code"):
        import_dcp(tmp_path / "src", url, "run", trusted=True)
    assert not (tmp_path / "exploded").exists()
    assert RunLog(open_store(url), "run").sync().commits == ()


def test_a_value_that_a_checkpoint_cannot_hold_is_named(url: str, tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(1), "deep": {"c": {1, 2}}}, checkpoint_id=str(tmp_path / "src"))
    with pytest.raises(UsageError, match=r"deep\.c"):
        import_dcp(tmp_path / "src", url, "run", trusted=True)


@pytest.mark.parametrize("damage", ["garbage", "short", "empty", "other"])
def test_damaged_metadata_is_an_error_in_words(url: str, source: Path, damage: str) -> None:
    path = source / ".metadata"
    data = path.read_bytes()
    path.write_bytes(
        {
            "garbage": b"\x80\x04garbage", "short": data[: len(data) // 2], "empty": b"",
            "other": pickle.dumps({"a": 1}),
        }[damage]
    )  # fmt: skip
    with pytest.raises(Corrupt, match="use another copy"):
        import_dcp(source, url, "run", trusted=True)


def test_flips_in_a_dcp_file_are_errors_in_words_or_harmless(url: str, source: Path) -> None:
    """DCP has no hashes: what matters is that nothing but our own errors comes out."""
    data = next(source.glob("*.distcp"))
    whole = data.read_bytes()
    outcomes: Counter[str] = Counter()
    for position in range(0, len(whole), max(len(whole) // 60, 1)):
        broken = bytearray(whole)
        broken[position] ^= 0x41
        data.write_bytes(bytes(broken))
        try:
            import_dcp(source, url, f"run-{position}", trusted=True)
            outcomes["in"] += 1
        except CloudshiftError as error:
            outcomes[type(error).__name__] += 1
    assert outcomes.total() >= 60


def test_damaged_safetensors_and_missing_ones_are_errors_in_words(url: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(300)}, path)
    whole = path.read_bytes()
    for broken in (whole[:100], b"", (2**60).to_bytes(8, "little") + whole[8:], b"\x80\x04pickle"):
        path.write_bytes(broken)
        with pytest.raises(Corrupt, match="use another copy"):
            import_safetensors(path, url, "run", trusted=True)
    with pytest.raises(NotFound, match=r"has no \*\.safetensors"):
        import_safetensors(tmp_path / "nowhere", url, "run", trusted=True)
    with pytest.raises(NotFound, match=r"no \.metadata"):
        import_dcp(tmp_path, url, "run", trusted=True)


# -- exports that fail ----------------------------------------------------------------------------


def test_an_export_never_overwrites_and_leaves_nothing_half_written(
    url: str, tmp_path: Path
) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "m.safetensors")
    import_safetensors(tmp_path / "m.safetensors", url, "st", trusted=True)
    (tmp_path / "there").write_text("mine")
    for export in (export_safetensors, export_state_dict, export_dcp):
        with pytest.raises(UsageError, match="exists already"):
            export(url, "st", tmp_path / "there")
        with pytest.raises(UsageError, match="there is no folder"):
            export(url, "st", tmp_path / "no" / "where")

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    out = tmp_path / "out"
    out.mkdir()
    for export in (export_safetensors, export_state_dict, export_dcp):
        with pytest.raises((Stop, CloudshiftError)):
            export(url, "st", out / "new", progress=stop)
        assert list(out.iterdir()) == []


# -- the command line -----------------------------------------------------------------------------


def test_the_command_line_imports_and_exports_with_progress_as_json(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "m.safetensors"
    save_file(odd_tensors(), source)
    where = ("--url", url, "--run", "cli")
    bring = ["import", "--from", "safetensors", str(source), *where]
    assert main(bring) == 1
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "--trust" in refused
    assert main([*bring, "--trust", "--step", "9"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["step"] == 9 and lines[0]["total_bytes"] > 0
    for kind in ("safetensors", "state_dict", "dcp"):
        assert main(["export", "--format", kind, "--to", str(tmp_path / kind), *where]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_bytes"] > 0
    assert load_file(tmp_path / "safetensors").keys() == odd_tensors().keys()


def test_the_command_ends_with_one_line_and_status_one_when_it_cannot(
    url: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "cloudshift_lab.training.interchange", "export", "--url", url,
            "--run", "cli", "--format", "dcp", "--to", str(tmp_path / "x"), "--step", "1",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "no committed step 1" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
