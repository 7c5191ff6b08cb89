"""Every store we ship keeps the store contract and carries a run log."""

from pathlib import Path

import pytest

from cloudshift_lab.sim.contracts import LogContract, StoreContract
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store, open_store


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return open_store(f"file://{tmp_path}/store")


class TestStore(StoreContract):
    pass


class TestLog(LogContract):
    pass
