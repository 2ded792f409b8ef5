"""Forked kernels behave as those that start afresh."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from ecdlib.book.kernels import ForkedKernelManager, can_fork

CELLS = (
    "import os, sys; print(os.environ['MARK'], os.getcwd(), 'torch' in sys.modules, __name__); mark = os.getpid()",
    "from ecdlib.book.plotting import style; style()\nimport matplotlib.pyplot as plt; _ = plt.plot([1, 2])",
    "print(mark)",
)


def executed(folder: Path, **options: object) -> nbformat.NotebookNode:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nb, folder / "in.ipynb")
    return papermill.execute_notebook(folder / "in.ipynb", None, cwd=folder, progress_bar=False, **options)


@pytest.mark.skipif(not can_fork(), reason="kernels are forked on Linux alone")
def test_a_forked_kernel_has_its_own_environment_folder_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mark in ("one", "two"):  # both of one server
        monkeypatch.setenv("MARK", mark)
        nb = executed(tmp_path, kernel_manager_class=ForkedKernelManager)
        first, figure, last = (cell.outputs[0] for cell in nb.cells)
        assert first.text.split() == [mark, str(tmp_path), "True", "__main__"]
        assert "image/svg+xml" in figure.data
        with pytest.raises(ProcessLookupError):  # it ended with its notebook
            os.kill(int(last.text), 0)
    assert "MPLBACKEND" not in os.environ
    assert sys.modules["__main__"].__name__ == "__main__"
