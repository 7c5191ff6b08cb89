"""What a result was measured with: machine, commit, versions of the rivals."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bench.rows import Machine

PACKAGES = ("cloudshift-lab", "torch", "numpy", "zstandard", "blake3", "fsspec", "s3fs")
_PROCESSOR = "model name"
_NOT_MEASURED = (":(top)", ":(top,exclude)tests/bench/results", ":(top,exclude)*.md")
"""What of the tree decides a figure: not the results of the benches before, nor a text."""


def machine() -> Machine:
    """This machine, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        _cpu_model(), os.cpu_count() or 1, memory, round(os.getloadavg()[0], 2),
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )  # fmt: skip


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith(_PROCESSOR):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Installed versions of what is measured; a package that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def date() -> str:
    """Now, in words that sort."""
    return datetime.fromtimestamp(REAL_WORLD.now(), UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """The commit that is checked out, ``+`` after it when tracked code was changed."""
    here = Path(__file__).parent
    head = _git(here, "rev-parse", "--short=10", "HEAD")
    if not head:
        return "unknown"
    changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", *_NOT_MEASURED)
    return head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
