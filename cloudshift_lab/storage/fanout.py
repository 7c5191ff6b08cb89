"""Run many store calls in a bounded number of threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(
    call: Callable[[Item], Result], items: Iterable[Item], concurrency: int
) -> list[Result]:
    """``[call(item) for item in items]`` with at most ``concurrency`` calls under way.

    Raises:
        CloudshiftError: The first call that failed; calls not yet begun are dropped.
    """
    work = list(items)
    if concurrency <= 1 or len(work) <= 1:
        return [call(item) for item in work]
    pool = ThreadPoolExecutor(min(concurrency, len(work)), thread_name_prefix="store")
    try:
        return list(pool.map(call, work))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
