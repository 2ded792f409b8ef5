"""Forked kernels behave as those that start afresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ecdlib.book.kernels import can_fork

CELLS = (
    "import os, sys; print(os.environ['MARK'], os.getcwd(), 'torch' in sys.modules, __name__); mark = os.getpid()",
    "from ecdlib.book.plotting import style; style()\nimport matplotlib.pyplot as plt; _ = plt.plot([1, 2])",
    "print(mark)",
)
#: Executes a notebook twice, both times by the same server; writes the outputs of all cells.
SCRIPT = """
import json, os, sys, papermill
from ecdlib.book.kernels import ForkedKernelManager
if __name__ == "__main__":
    found = []
    for os.environ["MARK"] in ("one", "two"):
        options = {"cwd": ".", "progress_bar": False, "kernel_manager_class": ForkedKernelManager}
        found.append([cell.outputs for cell in papermill.execute_notebook("in.ipynb", None, **options).cells])
    json.dump(found, open("out.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_fork(), reason="kernels are forked on Linux alone")
def test_a_forked_kernel_has_its_own_environment_folder_and_figures(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nb, tmp_path / "in.ipynb")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for mark, outputs in zip(("one", "two"), json.loads((tmp_path / "out.json").read_text()), strict=True):
        (first,), (figure,), (last,) = outputs
        assert first["text"].split() == [mark, str(tmp_path), "True", "__main__"]
        assert "image/svg+xml" in figure["data"]
        with pytest.raises(ProcessLookupError):  # it ended with its notebook
            os.kill(int(last["text"]), 0)
