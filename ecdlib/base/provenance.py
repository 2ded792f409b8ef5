"""What a number came from: commit, data, parameters, versions, device, time."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ecdlib.base.resources import IN_CHECKOUT, ROOT, files_read
from ecdlib.base.workers import available_cores

#: Packages that compute the book's numbers.
NUMERICAL = (
    *("numpy", "scipy", "finufft", "SimpleITK", "spglib", "pymatgen", "matminer", "scikit-learn", "scikit-image"),
    *("torch", "lightgbm", "xgboost-cpu", "xgboost", "optuna", "shap", "matplotlib", "plotly"),
)


def library_versions() -> dict[str, str]:
    """Versions of Python and of :data:`NUMERICAL`, where they are installed."""
    found = {"python": platform.python_version()}
    for name in NUMERICAL:
        try:
            found[name.removesuffix("-cpu")] = version(name)
        except PackageNotFoundError:  # not needed for what runs here
            continue
    return found


def provenance(name: str, parameters: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Commit (of an installed package its version), bundled files read so far (name and SHA-256, shortened),
    parameters, versions, device, seconds, date.

    Args:
        name: of the notebook or command.
        parameters: that it ran with.
        seconds: since it began.
    """

    def git(*command: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return ""
        return done.stdout.strip()

    packed = ROOT / "commit.txt"  # of sources that were packed for another machine
    if packed.is_file():
        commit = packed.read_text(encoding="utf-8").strip()
    else:
        commit = git("rev-parse", "--short=12", "HEAD") if IN_CHECKOUT else f"ecdlib {version('ecdlib')}"
    commit = commit or "unknown"
    if (
        IN_CHECKOUT
        and not packed.is_file()
        and git("status", "--porcelain", "--", "ecdlib", "notebooks", "data", "book/artifacts.csv")
    ):
        commit += " + uncommitted changes"
    return {
        "notebook": name,
        "commit": commit,
        "data": {name: digest[:12] for name, digest in files_read().items()},
        "parameters": dict(parameters),
        "versions": library_versions(),
        "device": _device(),
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _device() -> str:
    """The GPU if this process has used one, else the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    cores = available_cores()
    return f"CPU, {cores} core{'s' * (cores > 1)}"
