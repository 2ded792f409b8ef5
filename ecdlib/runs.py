"""Runs of notebooks: what a notebook calls to begin, and how the command line executes it with papermill."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import nbformat
from IPython.display import HTML, display
from myst_nb import glue

from ecdlib import artifacts, parameters
from ecdlib.datasets import ROOT, data_hashes
from ecdlib.errors import EcdError
from ecdlib.parameters import Parameters

#: Build products: runs, caches, the book.
BUILD = ROOT / "_build"


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
        checks: Mapping[str, bool] | None = None,
        reason: str = "",
        limit: artifacts.Verdict | None = None,
    ) -> None:
        """Write the payload of one artifact (see :func:`ecdlib.artifacts.write_payload`) and show its verdict."""
        made_by = artifacts.provenance(self.notebook, self.parameters.model_dump(), time.monotonic() - self._started)
        payload = artifacts.write_payload(
            self.folder, artifact_id, ours, checks=checks, reason=reason, limit=limit, made_by=made_by
        )
        display(HTML(verdict_html(artifacts.load_artifacts()[artifact_id], payload)))

    def glue(self, name: str, value: Any) -> None:
        """Make a value usable in prose as ``{glue:text}`name:.2f```."""
        glue(name, value.item() if hasattr(value, "item") else value, display=False)


def verdict_html(artifact: artifacts.Artifact, payload: Mapping[str, Any]) -> str:
    """A line that says what the paper reports, what we get and the verdict."""
    ours = payload["ours"] if isinstance(payload["ours"], str) else "; ".join(f"{v:.4g}" for v in payload["ours"])
    colour = {"reproduced": "#1a7f37", "partly": "#9a6700", "differs": "#b42318"}.get(payload["verdict"], "#57606a")
    failed = [name for name, held in payload["checks"].items() if not held]
    reason = payload["reason"] + (f" Does not hold: {'; '.join(failed)}." if failed else "")
    cells = [
        f"<b style='color:{colour}'>{payload['verdict']}</b>",
        f"{html.escape(artifact.where)}: {html.escape(artifact.what)}",
        f"paper: {html.escape(artifact.reported)}",
        f"here: {html.escape(ours)} {html.escape(artifact.unit if not isinstance(payload['ours'], str) else '')}",
    ]
    return (
        "<p style='border-left:4px solid " + colour + ";padding-left:.7em;font-size:90%'>"
        f"{' · '.join(cells)}{'<br>' + html.escape(reason) if reason else ''}</p>"
    )


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
    values = parameters.resolve(notebook, given)
    rows = "".join(
        f"<tr><td><code>{r['name']}</code></td><td><b>{html.escape(str(getattr(values, r['name'])))}</b></td>"
        f"<td>{html.escape(r['quick'])}</td><td>{html.escape(r['full'])}</td><td>{html.escape(r['meaning'])}</td></tr>"
        for r in parameters.describe(notebook)
    )
    head = "".join(f"<th>{name}</th>" for name in ("parameter", "this run", "quick", "full", "meaning"))
    display(
        HTML(
            "<details><summary>Parameters of this run (<code>ecd run "
            f"{notebook} -p name=value</code>)</summary><table><tr>{head}</tr>{rows}</table></details>"
        )
    )
    folder = Path(os.environ.get("ECD_RUN_FOLDER", BUILD / "interactive" / notebook)) / "results"
    return Run(notebook, values, folder)


def notebook_path(notebook: str) -> Path:
    """Source notebook of that name."""
    parameters.schema(notebook)
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def covered_artifacts() -> dict[str, str]:
    """Artifact id -> notebook, for all that the notebooks record."""
    found: dict[str, str] = {}
    for notebook in parameters.NOTEBOOKS:
        cells = nbformat.read(notebook_path(notebook), as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found |= dict.fromkeys(re.findall(r'run\.record\(\s*"([^"]+)"', source), notebook)
    return found


def cache_key(notebook: str, values: Parameters) -> str:
    """Digest of all that an executed notebook depends on: its source and parameters, the library, data, versions."""
    nb = nbformat.read(notebook_path(notebook), as_version=4)
    digest = hashlib.sha256()
    parts = [cell.cell_type + cell.source + json.dumps(cell.metadata, sort_keys=True) for cell in nb.cells]
    parts += [values.model_dump_json(), json.dumps(data_hashes(), sort_keys=True), sys.version]
    files = [*sorted((ROOT / "ecdlib").rglob("*.py")), ROOT / "requirements.lock", ROOT / "book" / "artifacts.csv"]
    for part in parts + [file.read_text(encoding="utf-8") for file in files]:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def run_folder(notebook: str, values: Parameters) -> Path:
    """Where a run keeps its executed notebook, results and key."""
    return BUILD / "runs" / parameters.slug(notebook, values)


def is_current(notebook: str, values: Parameters) -> bool:
    """Whether a finished run with the present sources, data and versions is there."""
    key = run_folder(notebook, values) / "key.json"
    return key.is_file() and json.loads(key.read_text())["key"] == cache_key(notebook, values)


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

    target = run_folder(notebook, values)
    if not force and is_current(notebook, values):
        return target, True
    key, started = cache_key(notebook, values), time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("ECD_RUN_FOLDER")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a line now and then in a log
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as name:
        folder = Path(name)
        os.environ["ECD_RUN_FOLDER"] = name
        try:
            papermill.execute_notebook(
                notebook_path(notebook),
                folder / "executed.ipynb",
                parameters=values.model_dump(),
                kernel_name=kernel,
                cwd=str(ROOT),
                progress_bar={"desc": target.name} if sys.stderr.isatty() else False,
                stderr_file=sys.stderr,  # progress bars of the notebook
                extra_arguments=["--log-level=ERROR"],  # no remark on how the kernel talks to us
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
        finally:
            if before is None:
                del os.environ["ECD_RUN_FOLDER"]
            else:
                os.environ["ECD_RUN_FOLDER"] = before
        meta = {
            "notebook": notebook,
            "parameters": values.model_dump(),
            "key": key,
            "seconds": round(time.monotonic() - started, 1),
        }
        (folder / "key.json").write_text(json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    return target, False


def finished_runs() -> list[tuple[str, Parameters, Path, bool]]:
    """All finished runs: notebook, parameters, folder, and whether each is current."""
    runs = []
    for key in sorted((BUILD / "runs").glob("*/key.json")):
        meta = json.loads(key.read_text())
        if meta["notebook"] not in parameters.NOTEBOOKS:
            continue
        try:
            profile = cast(parameters.Profile, meta["parameters"].get("profile", "quick"))
            values = parameters.resolve(meta["notebook"], meta["parameters"], profile)
        except EcdError:  # a parameter of an earlier version
            continue
        runs.append((meta["notebook"], values, key.parent, is_current(meta["notebook"], values)))
    return runs


def current_scoreboard() -> list[dict[str, Any]]:
    """The scoreboard from the original runs (no changed parameters), quick before full.

    A payload of sources that have changed since carries ``stale: true``.
    """
    originals = [run for run in finished_runs() if not parameters.changed(run[0], run[1])]
    originals.sort(key=lambda run: get_args(parameters.Profile).index(run[1].profile))
    rows = artifacts.scoreboard([run[2] / "results" for run in originals], covered_artifacts())
    current = {(run[0], run[1].profile): run[3] for run in originals}
    for row in rows:
        made = row["provenance"]
        row["stale"] = bool(made) and not current[(made["notebook"], made["parameters"]["profile"])]
    return rows
