"""Builds the JupyterLab extension when node is present; installs without it when not."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("extensions/jupyterlab")
OUTPUT = Path("cloudshift_lab/labextension")
SHARED = "share/jupyter/labextensions/cloudshift-lab"
STAMP = ".sources.sha256"
BUILT = ("lib", "node_modules", "tsconfig.tsbuildinfo")


def source_files(root: Path) -> Iterator[Path]:
    """What the bundle is made of, in a fixed order."""
    for path in sorted((root / SOURCES).rglob("*")):
        if path.is_file() and path.relative_to(root / SOURCES).parts[0] not in BUILT:
            yield path


def digest(root: Path) -> str:
    """Hash of names and contents of all sources: equal means that a build would change nothing."""
    total = hashlib.sha256()
    for path in source_files(root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_fresh(root: Path) -> bool:
    """True if the built extension fits its sources; without sources what is there is right."""
    if not (root / OUTPUT / "package.json").is_file():
        return False
    if not (root / SOURCES / "src").is_dir():
        return True
    stamp = root / OUTPUT / STAMP
    return stamp.is_file() and stamp.read_text() == digest(root)


def build(root: Path) -> None:
    """Compile and bundle.

    Raises:
        subprocess.CalledProcessError: npm failed; its output has been shown.
    """
    scripts = str(Path(sys.executable).parent)  # jupyter-builder, where builds are not isolated
    env = {**os.environ, "PATH": os.pathsep.join((os.environ.get("PATH", ""), scripts))}
    for command in (
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        ["npm", "run", "build:prod"],
    ):
        subprocess.run(command, cwd=root / SOURCES, check=True, env=env)
    (root / OUTPUT / STAMP).write_text(digest(root))


class LabExtensionHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``cloudshift_lab/labextension`` to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if not is_fresh(root):
            self.try_build(root, version)
        if (root / OUTPUT / "package.json").is_file():
            self.include(build_data)

    def try_build(self, root: Path, version: str) -> None:
        """Build if that is possible and wanted; a release that lacks the extension must fail."""
        if not (root / SOURCES / "src").is_dir():
            return
        if os.environ.get("CLOUDSHIFT_SKIP_LABEXTENSION") == "1":
            self.app.display_warning("CLOUDSHIFT_SKIP_LABEXTENSION=1: no JupyterLab extension")
            return
        if not (shutil.which("npm") and shutil.which("node")):
            self.app.display_warning(
                "node and npm not found: installing without the JupyterLab side panel; "
                "magics, widgets and dashboard work. Install node and run pip again to add it."
            )
            return
        try:
            build(root)
        except subprocess.CalledProcessError as error:
            if version != "editable":
                raise
            self.app.display_warning(f"the JupyterLab extension did not build ({error})")

    def include(self, build_data: dict[str, Any]) -> None:
        """Name the built files (git ignores them) and where Jupyter looks for them."""
        build_data["artifacts"].append(f"/{OUTPUT.as_posix()}/**")
        if self.target_name == "wheel":
            shared = build_data["shared_data"]
            shared[str(OUTPUT)] = SHARED
            shared[str(SOURCES / "install.json")] = f"{SHARED}/install.json"
