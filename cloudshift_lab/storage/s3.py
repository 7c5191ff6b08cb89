"""Amazon S3 and servers that speak its protocol, through s3fs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.asyn import get_loop
from s3fs import S3FileSystem

from cloudshift_lab.storage.dialect import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    Verdict,
    verdict_of_status,
)

_CONFIG: dict[str, object] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": IDLE_TIMEOUT_S,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "max_pool_connections": 64,
}
_OWN_SERVER_CONFIG: dict[str, object] = {
    "s3": {"addressing_style": "path"},
    "response_checksum_validation": "when_required",
}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)


class S3Dialect:
    """Objects below ``s3://bucket/folder``."""

    errors: tuple[type[Exception], ...] = (
        OSError,
        boto.BotoCoreError,
        boto.ClientError,
        boto.HTTPClientError,
        aiohttp.ClientError,
    )

    def __init__(self, bucket: str, folder: str, options: Mapping[str, object]) -> None:
        self._options = options
        self._bucket = bucket
        self._folder = folder
        self._fs: Any = None
        self.loop: asyncio.AbstractEventLoop = get_loop()

    def build(self) -> None:
        given = dict(self._options)
        own_server = _OWN_SERVER_CONFIG if given.get("endpoint_url") else {}
        config = {**_CONFIG, **own_server, **_mapping(given.pop("config_kwargs", None))}
        self._fs = S3FileSystem(
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,
            **given,
        )
        self._fs.retries = 1

    async def connect(self) -> None:
        await self._fs.set_session()

    async def get(self, key: str, start: int, end: int | None) -> bytes:
        limits = {} if (start, end) == (0, None) else {"start": start, "end": end}
        return bytes(await self._fs._cat_file(self._path(key), **limits))

    async def put(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data)

    async def create(self, key: str, data: bytes) -> None:
        await self._fs._pipe_file(self._path(key), data, mode="create")

    async def size(self, key: str) -> int:
        answer = await self._fs._call_s3(
            "head_object", Bucket=self._bucket, Key=f"{self._folder}{key}"
        )
        return int(answer["ContentLength"])

    async def find(self, prefix: str) -> list[str]:
        folder = f"{self._bucket}/{self._folder}"
        found = await self._fs._find(f"{folder}{prefix}".rstrip("/"))
        return [path.removeprefix(folder) for path in found]

    async def delete(self, key: str) -> None:
        await self._fs._call_s3("delete_object", Bucket=self._bucket, Key=f"{self._folder}{key}")

    def judge(self, error: Exception) -> Verdict:
        if isinstance(error, (*_NO_CREDENTIALS, PermissionError)):
            return "denied"
        if isinstance(error, FileNotFoundError):
            return "absent"
        if isinstance(error, FileExistsError):
            return "exists"
        cause = error if isinstance(error, boto.ClientError) else error.__cause__
        if isinstance(cause, boto.ClientError):
            return verdict_of_status(cause.response["ResponseMetadata"]["HTTPStatusCode"])
        if isinstance(error, (boto.ParamValidationError, boto.UnknownEndpointError)):
            return "refused"
        return "again"

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{self._folder}{key}"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
