"""Receipts of finished moves: kept here first, chained by digest, then sent to the bucket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import GENESIS, Receipt, Saga, check_chain, make_receipt
from cloudshift_lab.storage.store import Store

_UNSENT = ".unsent"


def receipt_key(run_id: str, migration_id: str) -> str:
    """Where a receipt lies in the bucket."""
    return f"runs/{run_id}/receipts/{migration_id}.json"


class Receipts:
    """One run's receipts.

    Args:
        folder: ``<home>/runs/<run>/receipts``.
        run_id: The run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id

    def write(self, saga: Saga, *, at: float, actual_micro_usd: int) -> None:
        """Make a finished move's receipt, once; a crash after it changes nothing."""
        sent = self._folder / f"{saga.plan.migration_id}.json"
        unsent = sent.with_suffix(_UNSENT)
        if sent.exists() or unsent.exists():
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        receipt = make_receipt(saga, self._newest(), at=at, actual_micro_usd=actual_micro_usd)
        write_private(unsent, to_json(receipt))

    def send(self, migration_id: str, store: Store) -> str:
        """Copy a written receipt into the bucket. Returns its key.

        Raises:
            Unavailable, Denied, Exhausted: As the store reported; send again later.
        """
        key = receipt_key(self._run_id, migration_id)
        sent = self._folder / f"{migration_id}.json"
        unsent = sent.with_suffix(_UNSENT)
        if unsent.exists():
            store.put(key, unsent.read_bytes())
            unsent.rename(sent)
        return key

    def sent_key(self, migration_id: str) -> str | None:
        """The key of a receipt that is in the bucket; None while it is not."""
        is_sent = (self._folder / f"{migration_id}.json").exists()
        return receipt_key(self._run_id, migration_id) if is_sent else None

    def all(self, finished: Sequence[str] = ()) -> tuple[Receipt, ...]:
        """Every receipt, oldest first, as their chain says.

        Args:
            finished: Moves that must have a receipt.

        Raises:
            Corrupt: One was altered, stands beside another one, or is missing.
        """
        found = self._read()
        following = {receipt.previous: receipt for receipt in found}
        for one in found:
            if (other := following[one.previous]) is not one:
                raise Corrupt(
                    f"the receipts of '{one.migration_id}' and '{other.migration_id}' both "
                    "follow the same one; restore the chain from a copy"
                )
        written = {one.migration_id for one in found}
        for name in finished:
            if name not in written:
                raise Corrupt(f"the receipt of '{name}' is missing; restore it from the bucket")
        ordered: list[Receipt] = []
        digest = GENESIS
        while (receipt := following.pop(digest, None)) is not None:
            ordered.append(receipt)
            digest = receipt.digest
        check_chain([*ordered, *following.values()])
        return tuple(ordered)

    def _read(self) -> list[Receipt]:
        # Sending turns unsent into sent: looked for in that order, none is missed.
        unsent = [path.stem for path in self._folder.glob(f"*{_UNSENT}")]
        sent = [path.stem for path in self._folder.glob("*.json")]
        return [self._read_one(name) for name in dict.fromkeys((*unsent, *sent))]

    def _read_one(self, name: str) -> Receipt:
        path = self._folder / f"{name}{_UNSENT}"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            path = path.with_suffix(".json")
            data = path.read_bytes()
        return from_json(data, Receipt, what=str(path))

    def _newest(self) -> str:
        found = self._read()
        previous = {receipt.previous for receipt in found}
        heads = [receipt.digest for receipt in found if receipt.digest not in previous]
        return heads[0] if heads else GENESIS
