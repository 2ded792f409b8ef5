"""Runs of notebooks: what a notebook calls to begin, and how the command line executes it with papermill."""

from __future__ import annotations

import ast
import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from myst_nb import glue

from ecdlib.base.cached import HARNESS, code_digest, imported_names
from ecdlib.base.errors import EcdError
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import ROOT, files_read, is_unchanged, sha256
from ecdlib.base.settings import Parameters, Profile
from ecdlib.book import artifacts, parameters

if TYPE_CHECKING:
    from nbformat import NotebookNode  # takes three seconds to import, and each kernel imports this module

#: Build products: runs, caches, the book.
BUILD = ROOT / "_build"
#: Where a notebook records an artifact.
RECORDED = re.compile(r'run\.record\(\s*"([^"]+)"')
#: Where a run notes the bundled files that it has read.
READS = "reads.json"


class Run:
    """The run of a notebook: its parameters, and the results it hands to the book."""

    def __init__(self, notebook: str, values: Parameters, folder: Path):
        self.notebook, self.parameters, self.folder = notebook, values, folder
        self._started = time.monotonic()

    def record(
        self,
        artifact_id: str,
        ours: Sequence[float] | str,
        *,
        standard_errors: Sequence[float] | None = None,
        checks: Mapping[str, bool] | None = None,
        comparisons: Iterable[artifacts.Comparison] = (),
        other_data: str = "",
        not_possible: str = "",
        reason: str = "",
        finding: str = "",
    ) -> None:
        """Write the payload of one artifact (see :func:`ecdlib.book.artifacts.write_payload`) and show its verdict."""
        payload = artifacts.write_payload(
            self.folder,
            artifact_id,
            ours,
            standard_errors=standard_errors,
            checks=checks,
            comparisons=comparisons,
            other_data=other_data,
            not_possible=not_possible,
            reason=reason,
            finding=finding,
            made_by=provenance(self.notebook, self.parameters.model_dump(), time.monotonic() - self._started),
        )
        display(HTML(verdict_html(artifacts.load_artifacts()[artifact_id], payload)))

    def glue(self, name: str, value: Any) -> None:
        """Make a value usable in prose as ``{glue:text}`name:.2f```."""
        glue(name, value.item() if hasattr(value, "item") else value, display=False)


def verdict_html(artifact: artifacts.Artifact, payload: Mapping[str, Any]) -> str:
    """A line that says the verdict, what the paper reports and what we get; a click opens the evidence."""
    colour = artifacts.COLOURS.get(payload["verdict"], artifacts.GREY)
    explained = artifacts.explain(payload)
    unit = artifact.unit if not isinstance(payload["ours"], str) else ""
    compared = " (not compared)" if unit and (payload["other_data"] or payload["not_possible"]) else ""
    cells = [
        f"<b style='color:{colour}'>{artifacts.verdict_words(artifact.paper, payload['verdict'])}</b>",
        f"{html.escape(artifact.where)}: {html.escape(artifact.what)}",
        f"{'aim' if artifact.paper == 'beyond' else 'paper'}: {html.escape(artifact.reported)}",
        f"here: {html.escape(artifacts.show(payload['ours']))} {html.escape(unit)}{compared}",
    ]
    return (
        f"<div style='border-left:4px solid {colour};padding-left:.7em;margin:.5em 0;font-size:90%'>"
        f"{' · '.join(cells)}{'<br>' + html.escape(explained) if explained else ''}"
        f"<details><summary>evidence</summary>{evidence_list(payload)}</details></div>"
    )


def evidence_list(payload: Mapping[str, Any]) -> str:
    """Every number, check and comparison with its outcome; empty if there is none."""
    items = "".join(f"<li><b>{e['outcome']}</b>: {html.escape(artifacts.worded(e))}</li>" for e in payload["evidence"])
    return f"<ul>{items}</ul>" if items else ""


_ASSIGNED: dict[str, set[str]] = {}  # names found at the first call: later cells of a live session define more


def begin(notebook: str, namespace: dict[str, Any]) -> Run:
    """First call of every notebook: validate its parameters, show them, and return the run.

    Args:
        notebook: name of the notebook.
        namespace: ``globals()``, called right after the cell tagged ``parameters``; simple values in lower case
            found there are taken as parameters, so that one that the schema does not know is refused.

    Raises:
        EcdError: an unknown or ill-typed parameter.
    """
    simple = (bool, int, float, str, list, dict, type(None))
    shown = {"In", "Out", "exit", "quit"}
    given = {
        k: v
        for k, v in namespace.items()
        if isinstance(v, simple) and k.islower() and not k.startswith("_") and k not in shown
    }
    names = _ASSIGNED.setdefault(notebook, set(given))
    values = parameters.resolve(notebook, {k: v for k, v in given.items() if k in names})
    rows = "".join(
        f"<tr><td><code>{r['name']}</code></td><td><b>{html.escape(str(getattr(values, r['name'])))}</b></td>"
        f"<td>{html.escape(r['quick'])}</td><td>{html.escape(r['full'])}</td><td>{html.escape(r['meaning'])}</td></tr>"
        for r in parameters.parameter_rows(notebook)
    )
    head = "".join(f"<th>{name}</th>" for name in ("parameter", "this run", "quick", "full", "meaning"))
    display(
        HTML(
            "<details><summary>Parameters of this run (<code>ecd run "
            f"{notebook} -p name=value</code>)</summary><table><tr>{head}</tr>{rows}</table></details>"
        )
    )
    folder = Path(os.environ.get("ECD_RUN_FOLDER", BUILD / "interactive" / notebook))
    note_reads(folder)
    return Run(notebook, values, folder / "results")


def note_reads(folder: Path) -> None:
    """After each cell, write the bundled files that this kernel has read so far to ``folder``."""
    shell = get_ipython()

    def write(*_: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / READS).write_text(json.dumps(files_read()))

    if shell is not None:
        shell.events.register("post_run_cell", write)


def notebook_path(notebook: str) -> Path:
    """Source notebook of that name."""
    parameters.schema(notebook)
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def covered_artifacts() -> dict[str, str]:
    """Artifact id -> notebook, for all that the notebooks record."""
    import nbformat

    found: dict[str, str] = {}
    for notebook in parameters.NOTEBOOKS:
        cells = nbformat.read(notebook_path(notebook), as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found |= dict.fromkeys(RECORDED.findall(source), notebook)
    return found


def code_key(nb: NotebookNode) -> str:
    """Digest of a notebook's cells and of the code and packages that it imports (see :mod:`ecdlib.base.cached`).

    The papers' values of the artifacts that it records are part of it.
    """
    code = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    names = [*imported_names(ast.parse(_plain(code))), "ecdlib.book.artifacts"]
    listed = artifacts.load_artifacts()
    parts = [cell.cell_type + cell.source + json.dumps(cell.metadata, sort_keys=True) for cell in nb.cells]
    parts += [repr(listed.get(name)) for name in RECORDED.findall(code)]
    return hashlib.sha256("\0".join([*parts, code_digest(names, HARNESS)]).encode()).hexdigest()


def _plain(code: str) -> str:
    """Code without the lines that only IPython understands."""
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in code.split("\n"))


def cache_key(notebook: str, values: Parameters, kernel: str | None = None) -> str:
    """Digest of what an executed notebook depends on besides the bundled files that it read."""
    import nbformat

    own = (ROOT / getattr(values, name, "") for name in ("file", "table"))  # a user's: content counts, not the name
    parts = [sha256(path) for path in own if path.is_file()]
    parts += [values.model_dump_json(), str(kernel), code_key(nbformat.read(notebook_path(notebook), as_version=4))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def run_folder(notebook: str, values: Parameters) -> Path:
    """Where a run keeps its executed notebook, results and key."""
    return BUILD / "runs" / parameters.run_name(notebook, values)


def _meta(folder: Path) -> dict[str, Any]:
    """What a finished run records about itself; empty if the folder holds none."""
    try:
        return dict(json.loads((folder / "key.json").read_text()))
    except (OSError, ValueError):
        return {}


def is_current(notebook: str, values: Parameters, kernel: str | None = None) -> bool:
    """Whether a finished run with the present sources, data and versions is there."""
    meta = _meta(run_folder(notebook, values))
    return meta.get("key") == cache_key(notebook, values, kernel) and is_unchanged(meta["reads"])


def execute(notebook: str, values: Parameters, *, kernel: str | None = None, force: bool = False) -> tuple[Path, bool]:
    """Execute a notebook with papermill, unless its cached run is current.

    The run becomes visible only when it is whole: a failed one leaves the previous run as it was, and its notebook,
    with the traceback, in ``_build/failed/``.

    Args:
        kernel: name of a Jupyter kernel, by default that of this environment.

    Returns:
        The run's folder (``executed.ipynb``, ``results/*.json``, ``key.json``) and whether it came from the cache.

    Raises:
        EcdError: the notebook failed, or there is no such kernel.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    from ecdlib.book.kernels import ForkedKernelManager, can_fork

    target = run_folder(notebook, values)
    if not force and is_current(notebook, values, kernel):
        return target, True
    key, started = cache_key(notebook, values, kernel), time.monotonic()
    manager = {"kernel_manager_class": ForkedKernelManager} if kernel is None and can_fork() else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("ECD_RUN_FOLDER")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a line now and then in a log
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as name:
        folder = Path(name) / "run"
        folder.mkdir()
        os.environ["ECD_RUN_FOLDER"] = str(folder)
        try:
            papermill.execute_notebook(
                notebook_path(notebook),
                folder / "executed.ipynb",
                parameters=values.model_dump(),
                kernel_name=kernel,
                **manager,
                cwd=str(ROOT),
                progress_bar={"desc": target.name} if sys.stderr.isatty() else False,
                stderr_file=sys.stderr,  # progress bars of the notebook
                extra_arguments=["--log-level=CRITICAL"],  # no remark on how the kernel talks to us
            )
        except NoSuchKernel as error:
            raise EcdError(f"kernel {kernel}", "no such Jupyter kernel", "See `jupyter kernelspec list`.") from error
        except papermill.PapermillExecutionError as error:
            failed = BUILD / "failed" / f"{target.name}.ipynb"
            failed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "executed.ipynb", failed)
            what = error.evalue if error.ename == "EcdError" else f"{error.ename}: {error.evalue}"
            remedy = f"See {failed.relative_to(ROOT)}."
            raise EcdError(f"notebook '{notebook}'", what.splitlines()[0], remedy) from error
        except (OSError, DeadKernelError) as error:
            remedy = "Check free disk space and memory, then run it again."
            raise EcdError(f"notebook '{notebook}'", f"ended unexpectedly ({error})", remedy) from error
        finally:
            if before is None:
                del os.environ["ECD_RUN_FOLDER"]
            else:
                os.environ["ECD_RUN_FOLDER"] = before
        meta = {
            "notebook": notebook,
            "parameters": values.model_dump(),
            "kernel": kernel,
            "key": key,
            "reads": json.loads((folder / READS).read_text()),
            "seconds": round(time.monotonic() - started, 1),
        }
        (folder / "key.json").write_text(json.dumps(meta, indent=1) + "\n")
        if target.exists():
            target.rename(Path(name) / "old")
        folder.rename(target)
    return target, False


def finished_runs() -> list[tuple[str, Parameters, Path, bool]]:
    """All finished runs: notebook, parameters, folder, and whether each is current."""
    runs = []
    for folder in sorted((BUILD / "runs").glob("[!.]*")):
        meta = _meta(folder)
        if meta.get("notebook") not in parameters.NOTEBOOKS:
            continue
        try:
            profile = cast(Profile, meta["parameters"].get("profile", "quick"))
            values = parameters.resolve(meta["notebook"], meta["parameters"], profile)
        except EcdError:  # a parameter of an earlier version
            continue
        runs.append((meta["notebook"], values, folder, is_current(meta["notebook"], values, meta.get("kernel"))))
    return runs


def current_scoreboard() -> list[dict[str, Any]]:
    """The scoreboard from the original runs (no changed parameters): current ones before stale, then full before quick.

    A payload of sources that have changed since carries ``stale: true``.
    """
    originals = [run for run in finished_runs() if not parameters.changed(run[0], run[1])]
    originals.sort(key=lambda run: (run[3], get_args(Profile).index(run[1].profile)))  # the last one counts
    rows = artifacts.scoreboard([run[2] / "results" for run in originals], covered_artifacts())
    current = {(run[0], run[1].profile): run[3] for run in originals}
    for row in rows:
        made = row["provenance"]
        row["stale"] = bool(made) and not current[(made["notebook"], made["parameters"]["profile"])]
    return rows
