"""A store that turns requests away with 503: the saver goes on asking for a while, then says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import FailedAnswer, SavedAnswer
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.sim.proxy import FaultyProxy
from cloudshift_lab.storage.store import Store, open_store

from .staged_node import make_job, stage, until, weights

Address = Callable[[str], tuple[str, dict[str, object]]]


class Throttled:
    """A saver whose store is behind a proxy that can be busy."""

    def __init__(self, tmp_path: Path, store_address: Address, patience_s: float) -> None:
        url, options = store_address("s3")
        self.store: Store = open_store(url, options)
        self.proxy = FaultyProxy(int(str(options["endpoint_url"]).rpartition(":")[2]))
        options = {**options, "endpoint_url": f"http://127.0.0.1:{self.proxy.port}"}
        raw = {key: msgspec.Raw(to_json(value)) for key, value in options.items()}
        for rank in range(2):
            stage(tmp_path / "node", rank, 7, weights(7, rank))
        job = make_job(url, store_options=raw, patience_s=patience_s)
        self.saver = SaverProcess(job, tmp_path / "node", tmp_path / "saver.log")


@pytest.fixture
def throttled(
    tmp_path: Path, store_address: Address, request: pytest.FixtureRequest
) -> Iterator[Throttled]:
    made = Throttled(tmp_path, store_address, request.param)
    with made.proxy:
        yield made
    made.saver.close()


@pytest.mark.parametrize("throttled", [60.0], indirect=True)
def test_a_few_refusals_are_waited_out_within_the_save(throttled: Throttled) -> None:
    throttled.proxy.inject(*["busy"] * 8)
    throttled.saver.start(7)
    saved = until(throttled.saver.poll)
    assert isinstance(saved, SavedAnswer)
    assert throttled.proxy.num_faults == 8
    opened = open_checkpoint(
        throttled.store, "run-a", saved.manifest_key, digest=saved.manifest_digest
    )
    assert float(opened.tensor("model/w1")[0]) == 71.0  # type: ignore[arg-type]


@pytest.mark.parametrize("throttled", [8.0], indirect=True)
def test_a_store_that_refuses_for_long_fails_this_save_and_the_next_one_works(
    throttled: Throttled,
) -> None:
    throttled.proxy.inject(*["busy"] * 1000)
    throttled.saver.start(7)
    failed = until(throttled.saver.poll)
    assert isinstance(failed, FailedAnswer)
    assert failed.error_kind == "Unavailable"
    assert "did not" in failed.message and "try again" in failed.message
    throttled.proxy.calm()
    throttled.saver.start(7)
    assert isinstance(until(throttled.saver.poll), SavedAnswer)
