"""etcd as a store of small objects, for run logs, through its HTTP gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from etcd3gw import Etcd3Client
from fsspec.asyn import get_loop

from cloudshift_lab.storage.dialect import IDLE_TIMEOUT_S, Verdict, verdict_of_status

Result = TypeVar("Result")
_THREADS = 16
_PORT = 2379
_OK = 200
_MAX_BYTES = 2**20
_FULL = "database space exceeded"
_DENIED = ("permission denied", "invalid auth token", "user name is empty")


class Refused(Exception):
    """etcd's answer was no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class _Client(Etcd3Client):
    """With the status of a failure, which the library's own exceptions do not tell."""

    def post(self, url: str, *args: Any, json: Any = None, **kwargs: Any) -> Any:
        del args
        answer = self.session.post(url, json=json, timeout=self.timeout, **kwargs)
        if answer.status_code != _OK:
            raise Refused(answer.status_code, answer.text)
        return answer.json()


class EtcdDialect:
    """Objects below ``etcd://host:port,host:port/folder``.

    Reads are linearizable: they ask the majority. After trouble the next host is asked. Options:
    ``protocol`` (http or https), ``ca_cert``, ``cert_cert`` and ``cert_key`` (files).
    """

    errors: tuple[type[Exception], ...] = (OSError, Refused, ValueError)

    def __init__(self, hosts: str, folder: str, options: Mapping[str, object]) -> None:
        self._hosts = [_host_and_port(host) for host in hosts.split(",")]
        self._folder = folder
        self._options: dict[str, Any] = {
            "timeout": IDLE_TIMEOUT_S, "api_path": "/v3/", **options,
        }  # fmt: skip
        self._turn = 0
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="etcd")
        self.loop: asyncio.AbstractEventLoop = get_loop()

    def build(self) -> None:
        self._client(0)

    async def connect(self) -> None:
        """Nothing to do: connections open with the first call."""

    async def get(self, key: str, start: int, end: int | None) -> bytes:
        return (await self._read(key))[start:end]

    async def put(self, key: str, data: bytes) -> None:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"etcd takes up to {_MAX_BYTES} bytes an object, not {len(data)}")
        await self._ask(lambda etcd: etcd.put(self._folder + key, data))

    async def create(self, key: str, data: bytes) -> None:
        if not await self._ask(lambda etcd: etcd.create(self._folder + key, data)):
            raise FileExistsError(key)

    async def size(self, key: str) -> int:
        return len(await self._read(key))

    async def find(self, prefix: str) -> list[str]:
        start = self._folder + prefix
        end = start[:-1] + chr(ord(start[-1]) + 1) if start else "\0"
        found = await self._ask(
            lambda etcd: etcd.get(start or "\0", metadata=True, range_end=end, keys_only=True)
        )
        return [_key(each).removeprefix(self._folder) for each in found]

    async def delete(self, key: str) -> None:
        await self._ask(lambda etcd: etcd.delete(self._folder + key))

    def judge(self, error: Exception) -> Verdict:
        if isinstance(error, FileNotFoundError):
            return "absent"
        if isinstance(error, FileExistsError):
            return "exists"
        if isinstance(error, Refused):
            return _verdict_of(error)
        return "again" if isinstance(error, OSError) else "refused"

    async def _read(self, key: str) -> bytes:
        found = await self._ask(lambda etcd: etcd.get(self._folder + key))
        if not found:
            raise FileNotFoundError(key)
        return bytes(found[0])

    async def _ask(self, call: Callable[[_Client], Result]) -> Result:
        turn = self._turn
        try:
            return await self.loop.run_in_executor(
                self._threads, lambda: call(self._client(turn % len(self._hosts)))
            )
        except (OSError, Refused):
            self._turn = turn + 1
            raise

    def _client(self, number: int) -> _Client:
        """This thread's client of one host."""
        clients: dict[Any, Any] = self._of_thread.__dict__
        if number not in clients:
            host, port = self._hosts[number]
            clients[number] = _Client(host=host, port=port, **self._options)
        client: _Client = clients[number]
        return client


def _verdict_of(error: Refused) -> Verdict:
    text = str(error)
    if _FULL in text:
        return "full"
    if any(words in text for words in _DENIED):
        return "denied"
    return verdict_of_status(error.status)


def _host_and_port(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if separator else (text, _PORT)


def _key(found: tuple[bytes, Any]) -> str:
    return bytes(found[1]["key"]).decode()
