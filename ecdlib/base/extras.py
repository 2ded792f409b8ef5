"""What to install where a package is missing that only a part of the library needs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

from ecdlib.base.errors import EcdError

#: Distributions whose modules have another name.
DISTRIBUTIONS = {
    **{"jarvis": "jarvis-tools", "skimage": "scikit-image", "sklearn": "scikit-learn"},
    **{"xgboost": "xgboost-cpu", "yaml": "PyYAML"},
}


def missing(error: ModuleNotFoundError) -> EcdError:
    """The error to show for a module that is not installed: which extra of this package brings it.

    >>> str(missing(ModuleNotFoundError(name="sevennet.io")))  # one that no extra brings
    "ecdlib: needs sevennet. pip install 'sevennet'"
    """
    module = (error.name or "a module").partition(".")[0]
    wanted = re.sub("[-_.]+", "-", DISTRIBUTIONS.get(module, module)).lower()
    try:
        lines = requires("ecdlib") or []
    except PackageNotFoundError:  # its sources are used in place
        lines = []
    found = [re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)", line) for line in lines]
    extras = [f"ecdlib[{hit[2]}]" for hit in found if hit and re.sub("[-_.]+", "-", hit[1]).lower() == wanted]
    return EcdError("ecdlib", f"needs {module}", f"pip install '{next(iter(extras), wanted)}'")
