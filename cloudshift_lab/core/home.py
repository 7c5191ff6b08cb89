"""The per-user state directory: where the conductor, its runs and the cloud list live."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Cloud, Clouds, Offer
from cloudshift_lab.core.wire import from_json, to_json


def home() -> Path:
    """``$CLOUDSHIFT_HOME`` or ``~/.cloudshift``, as ``open_home`` gives it."""
    return open_home(Path(os.environ.get("CLOUDSHIFT_HOME") or "~/.cloudshift"))


def open_home(root: Path) -> Path:
    """The one spelling of a state directory: absolute, without ``~`` and links.

    Made with mode 0700 on first use; one of ours that others may enter is closed to them.

    Raises:
        UsageError: It cannot be made, or is no directory.
    """
    try:
        path = root.expanduser().resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(path)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"'{root}' cannot be the state directory ({error}); point CLOUDSHIFT_HOME elsewhere"
        ) from error
    return path


def _close_to_others(path: Path) -> None:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == os.getuid() and mode & 0o077:
        path.chmod(mode & ~0o077)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def clouds_path(root: Path) -> Path:
    """The cloud list of one state directory; mode 0600, since it may hold credentials."""
    return root / "clouds.json"


def local_cloud(root: Path) -> Cloud:
    """This machine with a ``file://`` store: what a run uses when nothing is configured."""
    return Cloud(
        name="local",
        title="this machine",
        store_url=f"file://{root}/store",
        offers=(Offer(cloud="local", region="here", instance_type="this-machine",
                      price_micro_usd_per_h=0, source="your own machine"),),
    )  # fmt: skip


def load_clouds(root: Path) -> Clouds:
    """The configured clouds, always with ``local`` first.

    Raises:
        Corrupt: ``clouds.json`` is not readable.
    """
    path = clouds_path(root)
    configured = (
        from_json(path.read_bytes(), Clouds, what=str(path)).clouds if path.exists() else ()
    )
    if any(cloud.name == "local" for cloud in configured):
        return Clouds(clouds=configured)
    return Clouds(clouds=(local_cloud(root), *configured))


def save_clouds(root: Path, clouds: Clouds) -> None:
    """Write the cloud list, private to its owner."""
    write_private(clouds_path(root), to_json(clouds))


def store_options(cloud: Cloud, *, inside: bool = True) -> dict[str, object]:
    """The cloud's fsspec options as plain Python values.

    Args:
        cloud: Whose store is to be opened.
        inside: Whether who opens it runs in that cloud.

    Raises:
        UsageError: An option is not valid JSON.
    """
    options = cloud.store_options
    if not inside and cloud.public_store_options is not None:
        options = cloud.public_store_options
    try:
        return {key: msgspec.json.decode(value) for key, value in (options or {}).items()}
    except msgspec.DecodeError as error:
        raise UsageError(
            f"store options of '{cloud.name}' are not JSON ({error}); mend clouds.json"
        ) from error
