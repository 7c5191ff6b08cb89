"""Google Cloud Storage, through gcsfs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
from fsspec.asyn import get_loop
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError
from google.auth import exceptions as auth

from cloudshift_lab.storage.dialect import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    Verdict,
    verdict_of_status,
)

_ONE_REQUEST_BYTES = 256 * 2**20
_BY_TYPE: tuple[tuple[type[Exception], Verdict], ...] = (
    (FileNotFoundError, "absent"),
    (FileExistsError, "exists"),
    (PermissionError, "denied"),
    (ValueError, "refused"),
)
_OBJECT = "b/{}/o/{}"


class _OneAttempt(GCSFileSystem):  # type: ignore[misc]
    """Without gcsfs's own retries, which pause without jitter and hide the reason of a failure."""

    _request = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)


class GcsDialect:
    """Objects below ``gs://bucket/folder``.

    The plain file system is used, not the one for zonal buckets: that one asks each bucket for
    its kind by gRPC first, which hangs for a minute on servers without gRPC.
    """

    errors: tuple[type[Exception], ...] = (
        OSError,
        HttpError,
        ChecksumError,
        ValueError,
        RuntimeError,
        aiohttp.ClientError,
        auth.GoogleAuthError,
    )

    def __init__(self, bucket: str, folder: str, options: Mapping[str, object]) -> None:
        self._options = options
        self._bucket = bucket
        self._folder = folder
        self._fs: Any = None
        self.loop: asyncio.AbstractEventLoop = get_loop()

    def build(self) -> None:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S
        )
        self._fs = _OneAttempt(
            **{
                "session_kwargs": {"timeout": timeout},
                "use_listings_cache": False,
                "skip_instance_cache": True,
                **self._options,
            }
        )

    async def connect(self) -> None:
        await self._fs._set_session()

    async def get(self, key: str, start: int, end: int | None) -> bytes:
        limits = {} if (start, end) == (0, None) else {"start": start, "end": end}
        return bytes(await self._fs._cat_file(self._path(key), **limits))

    async def put(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data, chunksize=_ONE_REQUEST_BYTES)

    async def create(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data, mode="create")

    async def size(self, key: str) -> int:
        answer = await self._fs._call(
            "GET", _OBJECT, self._bucket, f"{self._folder}{key}", json_out=True
        )
        return int(answer["size"])

    async def find(self, prefix: str) -> list[str]:
        folder = f"{self._bucket}/{self._folder}"
        found = await self._fs._find(f"{folder}{prefix}".rstrip("/"))
        return [path.removeprefix(folder) for path in found]

    async def delete(self, key: str) -> None:
        await self._fs._call("DELETE", _OBJECT, self._bucket, f"{self._folder}{key}")

    def judge(self, error: Exception) -> Verdict:
        for kind, verdict in _BY_TYPE:
            if isinstance(error, kind):
                return verdict
        if isinstance(error, HttpError) and error.code is not None:
            return verdict_of_status(int(error.code))
        if isinstance(error, auth.GoogleAuthError):
            return "again" if getattr(error, "retryable", False) else "denied"
        if isinstance(error, OSError) and str(error).startswith("Forbidden"):
            return "denied"
        return "again"

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{self._folder}{key}"
