"""Azure Blob Storage and servers that speak its protocol, through adlfs."""

from __future__ import annotations

import asyncio
import io
import os
import weakref
from collections.abc import Mapping
from typing import Any

import aiohttp
from adlfs import AzureBlobFileSystem
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from fsspec.asyn import get_loop

from cloudshift_lab.storage.dialect import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    Verdict,
    verdict_of_status,
)

_LIMITS: dict[str, object] = {
    "connection_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": IDLE_TIMEOUT_S,
}
_BY_TYPE: tuple[tuple[type[Exception], Verdict], ...] = (
    (FileNotFoundError, "absent"),
    (FileExistsError, "exists"),
    (PermissionError, "denied"),
    (ValueError, "refused"),
)
_CHANGED_WHILE_READ = 412
_INHERITED: list[Any] = []


class AzureDialect:
    """Objects below ``az://container/folder``.

    Options are adlfs's, and ``endpoint_url`` for another server than Azure's own, such as
    Azurite; the account's name follows it in every address.
    """

    errors: tuple[type[Exception], ...] = (OSError, AzureError, ValueError, aiohttp.ClientError)

    def __init__(self, container: str, folder: str, options: Mapping[str, object]) -> None:
        self._options = options
        self._container = container
        self._folder = folder
        self._fs: Any = None
        self.loop: asyncio.AbstractEventLoop = get_loop()

    def build(self) -> None:
        given = {
            **_LIMITS,
            "max_concurrency": 4,
            "use_listings_cache": False,
            "skip_instance_cache": True,
            **_with_endpoint(self._options),
        }
        self._fs = AzureBlobFileSystem(**given)
        _try_once(self._fs.service_client)
        _close_with(self, self._fs)

    async def connect(self) -> None:
        """Nothing to do: the session opens with the first call."""

    async def get(self, key: str, start: int, end: int | None) -> bytes:
        limits = {} if (start, end) == (0, None) else {"start": start, "end": end}
        return bytes(await self._fs._cat_file(self._path(key), **limits))

    async def put(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data, raw_request_hook=_send_in_pieces)

    async def create(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data, overwrite=False)

    async def size(self, key: str) -> int:
        return int((await self._blob(key).get_blob_properties(**_LIMITS)).size)

    async def find(self, prefix: str) -> list[str]:
        """All keys; without the folders that an account with real folders lists among them."""
        container = self._fs.service_client.get_container_client(self._container)
        blobs = container.list_blobs(f"{self._folder}{prefix}", include=["metadata"], **_LIMITS)
        return [
            blob.name.removeprefix(self._folder)
            async for blob in blobs
            if not (blob.metadata or {}).get("hdi_isfolder")
        ]

    async def delete(self, key: str) -> None:
        await self._blob(key).delete_blob(**_LIMITS)

    def judge(self, error: Exception) -> Verdict:
        for kind, verdict in _BY_TYPE:
            if isinstance(error, kind):
                return verdict
        if not isinstance(error, HttpResponseError):
            return "again"
        status = error.status_code or 0
        if isinstance(error, ClientAuthenticationError):
            return "again" if status >= 500 else "denied"
        return "again" if status == _CHANGED_WHILE_READ else verdict_of_status(status)

    def _blob(self, key: str) -> Any:
        return self._fs.service_client.get_blob_client(self._container, f"{self._folder}{key}")

    def _path(self, key: str) -> str:
        return f"{self._container}/{self._folder}{key}"


def _with_endpoint(options: Mapping[str, object]) -> dict[str, object]:
    """The options with ``endpoint_url`` as adlfs wants it: in a connection string.

    Raises:
        ValueError: The account is missing.
    """
    given = dict(options)
    endpoint = given.pop("endpoint_url", None)
    if endpoint is None:
        return given
    if not (account := given.get("account_name")):
        raise ValueError("endpoint_url needs account_name")
    parts = {
        "BlobEndpoint": f"{str(endpoint).rstrip('/')}/{account}",
        "AccountName": account,
        "AccountKey": given.get("account_key"),
        "SharedAccessSignature": str(given.get("sas_token") or "").lstrip("?"),
    }
    given["connection_string"] = ";".join(f"{n}={part}" for n, part in parts.items() if part)
    return given


def _try_once(client: Any) -> None:
    """Turn the client's own retries off: their first pause is 15 s. adlfs has no option for it."""
    pipeline = getattr(client, "_pipeline", None)
    for policy in getattr(pipeline, "_impl_policies", ()):
        if hasattr(policy, "total_retries"):
            policy.total_retries = 0


def _send_in_pieces(request: Any) -> None:
    """Large bodies would hold up the loop, and all other requests with it, if sent as one."""
    body = request.http_request.data
    if isinstance(body, bytes):
        request.http_request.data = io.BytesIO(body)


def _close_with(dialect: AzureDialect, fs: Any) -> None:
    """Close the client when the dialect is gone, and only in the process that opened it.

    adlfs would keep each client until the process ends, and a forked process would then wait for
    ever for a thread that it does not have.
    """
    for each in list(getattr(weakref.finalize, "_registry", ())):
        if (watched := each.peek()) and watched[0] is fs:
            each.detach()
    open_things = [each for each in (fs.service_client, fs.credential) if hasattr(each, "close")]
    weakref.finalize(dialect, _close, os.getpid(), dialect.loop, open_things)


def _close(pid: int, loop: asyncio.AbstractEventLoop, open_things: list[Any]) -> None:
    if pid != os.getpid():
        _INHERITED.extend(open_things)  # its connections are the other process's: left alone
    elif loop.is_running():
        for each in open_things:
            asyncio.run_coroutine_threadsafe(each.close(), loop)
