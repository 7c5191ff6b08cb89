"""Run many store calls in a bounded number of threads, in order or as they end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
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


def fan_out_each(
    call: Callable[[Item], Result], items: Iterable[Item], concurrency: int
) -> Generator[tuple[int, Result], None, None]:
    """Yield ``(number, call(item))`` as calls end, in any order.

    At most ``concurrency`` results are under way or wait to be taken: a slow taker slows the calls.
    Close the iterator to drop calls not yet begun.

    Raises:
        CloudshiftError: The first call that failed; calls not yet begun are dropped.
    """
    work = list(items)
    if concurrency <= 1 or len(work) <= 1:
        for number, item in enumerate(work):
            yield number, call(item)
        return
    pool = ThreadPoolExecutor(min(concurrency, len(work)), thread_name_prefix="store")
    numbered = enumerate(work)
    try:
        under_way: dict[Future[Result], int] = {
            pool.submit(call, item): number for number, item in islice(numbered, concurrency)
        }
        while under_way:
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                ended = under_way.pop(done)
                for number, item in islice(numbered, 1):
                    under_way[pool.submit(call, item)] = number
                yield ended, done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
