"""The command line: ``ecd``. Heavy parts are imported by the command that needs them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecdlib.base.errors import DAMAGED, STDOUT, EcdError, atomic_write, check_input, check_output, told_as
from ecdlib.base.extras import missing
from ecdlib.base.resources import needs_checkout
from ecdlib.crystals.sources import SOURCES_HELP

if TYPE_CHECKING:
    from ecdlib.base.settings import Parameters
    from ecdlib.density.core import ChargeDensity

# Before numpy and torch are imported, here and in the kernels of notebooks: their threads wait for each other without
# sleeping, so that one busy core beside them makes everything ten times slower. The matrices here need no threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class Commands(typer.core.TyperGroup):
    """All commands; typer has words of its own for two errors, which are not ours."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("ecd: interrupted; the same command resumes", file=sys.stderr)
            raise SystemExit(130) from None
        except EOFError as error:
            raise RuntimeError("a file ended unexpectedly") from error


HELP_NAMES = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ecdlib {version('ecdlib')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="show where an unexpected error comes from")] = False,
) -> None:
    """Crystal properties from electron charge densities: run notebooks, featurize and convert densities."""


class Profile(StrEnum):
    tiny = "tiny"
    quick = "quick"
    full = "full"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Route(StrEnum):
    fourier = "fourier"
    trilinear = "trilinear"


class Convention(StrEnum):
    computed = "computed"
    gpaw = "gpaw"
    chemical = "chemical"


class Potential(StrEnum):
    sevennet = "sevennet"


Valences = Annotated[
    str, typer.Option("--valence", help="valence electrons of the potentials where the file does not say: Na=1,Cl=7")
]


def _table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _values(notebook: str, given: list[str] | None, profile: Profile) -> Parameters:
    """Parameters from ``-p name=value``."""
    from ecdlib.book.parameters import resolve

    pairs = [text.partition("=") for text in given or []]
    bad = [name for name, equals, _ in pairs if not equals]
    if bad:
        raise EcdError(f"-p {bad[0]}", "is not name=value", "For example: -p folds=5")
    if any(name == "profile" for name, _, _ in pairs):
        raise EcdError("-p profile", "a profile is not a parameter", "Write: --profile full")
    values = resolve(notebook, {name: value for name, _, value in pairs}, profile.value)
    if getattr(values, "device", None) == "cuda":  # said before the work
        from ecdlib.models.torch_regressor import pick_device

        pick_device("cuda")
    return values


def _check_npz(path: Path, what: str, inputs: Iterable[object] = ()) -> None:
    check_output(path, inputs)
    if path.suffix != ".npz":
        raise EcdError(path, f"is not a file name for a {what}", "It must end in .npz.")


def _texts(values: Parameters) -> list[str]:
    """Values of parameters that may be names of files."""
    return [value for value in vars(values).values() if isinstance(value, str)]


def _warn(source: str, density: ChargeDensity) -> ChargeDensity:
    """Say on standard error if a density does not fit its atoms."""
    from ecdlib.density.doubts import doubts

    for text in doubts(density):
        print(f"warning: {source}: {text}", file=sys.stderr)
    return density


def _say(text: str, out: Path) -> None:
    """Print a message, unless standard output takes the file."""
    print(text, file=sys.stderr if str(out) in STDOUT else sys.stdout)


@app.command("list")
def list_notebooks(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List the notebooks and their parameters."""
    from ecdlib.book.parameters import NOTEBOOKS, parameter_rows, title

    if as_json:
        print(json.dumps({n: {"title": title(n), "parameters": parameter_rows(n)} for n in NOTEBOOKS}, indent=1))
        return
    for notebook in NOTEBOOKS:
        print(f"\n{notebook}: {title(notebook)}")
        _table(parameter_rows(notebook), ["name", "type", "quick", "full", "meaning"])


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="one of `ecd list`")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated")] = None,
    profile: Annotated[Profile, typer.Option(help="profile to start from")] = Profile.quick,
    kernel: Annotated[str | None, typer.Option(help="Jupyter kernel (default: that of this environment)")] = None,
    force: Annotated[bool, typer.Option(help="run even if nothing has changed since the last run")] = False,
) -> None:
    """Execute one notebook with papermill; the next `ecd book` shows it beside the original."""
    needs_checkout("ecd run")
    from ecdlib.book.runs import execute

    values = _values(notebook, parameter, profile)
    folder, cached = execute(notebook, values, kernel=kernel, force=force)
    print(f"{'unchanged since the last run' if cached else 'executed'}: {folder / 'executed.ipynb'}")
    print("`ecd book` shows it as a page.")


@app.command()
def book(
    profile: Annotated[
        Profile, typer.Option(help="quick: minutes on 2 cores; full: the papers' settings; tiny: for tests")
    ] = Profile.quick,
    kernel: Annotated[str | None, typer.Option(help="Jupyter kernel (default: that of this environment)")] = None,
    force: Annotated[bool, typer.Option(help="execute every notebook, even unchanged ones")] = False,
    solutions: Annotated[bool, typer.Option(help="add pages with the solutions of the exercises")] = False,
) -> None:
    """Execute the notebooks and build the HTML book."""
    needs_checkout("ecd book")
    from ecdlib.book.build import build_book
    from ecdlib.course import pages

    print(f"open {build_book(pages, profile.value, kernel=kernel, force=force, solutions=solutions)}")


@app.command()
def scoreboard(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Every artifact of the papers: reported, ours, tolerance, verdict, provenance."""
    needs_checkout("ecd scoreboard")
    from collections import Counter

    from ecdlib.book.artifacts import show
    from ecdlib.book.runs import current_scoreboard

    rows = current_scoreboard()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        row["ours"] = show(row["ours"])
        row["made by"] = row["provenance"]["notebook"] if row["provenance"] else ""
    _table(rows, ["id", "paper", "reported", "ours", "tolerance", "verdict", "made by"])
    print(", ".join(f"{n} {v}" for v, n in Counter(row["verdict"] for row in rows).items()))


@app.command()
def featurize(
    files: Annotated[
        list[str], typer.Argument(help="CHGCAR (.gz, .bz2, .xz), cube, npz, whole stores (.h5) or store.h5::NAME")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file to write")],
    size: Annotated[int, typer.Option(help="odd number of voxels along each axis")] = 51,
    voxel: Annotated[float, typer.Option(help="voxel width in Å")] = 0.2,
    conversion: Annotated[Route, typer.Option(help="route to the conventional cell")] = Route.fourier,
    convention: Annotated[
        Convention,
        typer.Option(help="convert the valence first: gpaw, as in our data; chemical, without closed shells"),
    ] = Convention.computed,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler (default: processes on this machine)")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="local processes (default: one per core)")] = None,
) -> None:
    """Autocorrelations of many densities on the standard grid; resumes an interrupted run."""
    from ecdlib.features.collection import FeatureSettings, featurize_collection

    check_output(out, files)
    settings = FeatureSettings(size=size, voxel=voxel, conversion=conversion.value, convention=convention.value)
    if size < 1 or size % 2 == 0 or voxel <= 0:
        raise EcdError(
            f"--size {size} --voxel {voxel}", "the size must be odd and the voxel width positive", "Try 51 and 0.2."
        )
    table = featurize_collection(files, out, settings, scheduler=scheduler, workers=workers)
    bad = table[table["error"] != ""]
    print(f"{len(table) - len(bad)} densities featurized: {out}")
    for message in bad["error"]:
        print(f"skipped: {message}", file=sys.stderr)
    if len(bad):
        raise typer.Exit(2)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="CHGCAR, AECCAR0+AECCAR2, cube, npz, store.h5::NAME or the name of a bundled crystal")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="file to write: *.cube, *.npz, *.h5 (store), POSCAR (atoms only), otherwise a CHGCAR (- prints it)"
        ),
    ],
    conventional: Annotated[bool, typer.Option(help="convert it to the conventional cell")] = False,
    convention: Annotated[
        Convention,
        typer.Option(help="convert and smooth: gpaw, the valence of our data; chemical, without closed shells"),
    ] = Convention.computed,
    valence: Valences = "",
) -> None:
    """Convert a density file, for example a bundled crystal to a CHGCAR that VESTA opens."""
    from dataclasses import replace

    from ecdlib.density import io
    from ecdlib.density.cell import to_conventional
    from ecdlib.density.store import write_store
    from ecdlib.density.valence import parse_valence, to_convention

    check_output(target, [source], stdout=True)
    write = None if target.suffix == ".h5" else io.writer(target)  # before anything is read
    density = as_read = io.read_density(source)
    with told_as(source, density.name):
        if valence:
            density = replace(density, valence=parse_valence(valence))
        if convention is not Convention.computed:
            density = to_convention(density, "gpaw" if convention is Convention.gpaw else "chemical")
            _say(density.history[-1], target)
        if conventional:
            density = to_conventional(density)
        if write is None:
            write_store(target, [density])
        else:
            write(density, target)
    _warn(source, as_read)
    _say(f"{density}\nwritten: {target}", target)


@app.command("predict")
def predict_command(
    files: Annotated[
        list[str],
        typer.Argument(help="densities (CHGCAR, cube, npz, store.h5::NAME), structures (CIF, POSCAR), bundled names"),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="auto (the input decides), a shipped model of densities (an unknown name lists them), or a "
            "file from `ecd train` or `train-fusion --final`"
        ),
    ] = "auto",
    valence: Valences = "",
    calibration: Annotated[Path | None, typer.Option(help="file from `ecd calibrate` for your potentials")] = None,
    potential: Annotated[
        Potential | None,
        typer.Option("--with", help="also use its elastic tensor of the structure: more accurate, but slower"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    csv: Annotated[Path | None, typer.Option(help="table to write")] = None,
) -> None:
    """Predict properties from PBE densities or from structures alone, each with a 95 % interval.

    Warns where a crystal is unlike the training set.
    """
    from dataclasses import replace

    from ecdlib.density.core import ChargeDensity
    from ecdlib.density.valence import parse_valence
    from ecdlib.features.collection import expand_sources
    from ecdlib.learn.answer import NO_DENSITY, answer, interval, named, read_crystal, table

    stated = parse_valence(valence)
    if csv is not None:
        check_output(csv, [*files, model, calibration], stdout=not as_json)
    if calibration is not None:
        check_input(calibration)
    if model.endswith(".npz"):
        check_input(model)
    answers, failed = [], []
    for file in (each for f in files for each in (expand_sources([f]) if f.endswith(".h5") else [f])):
        try:
            crystal = read_crystal(file)
            if stated and isinstance(crystal, ChargeDensity):
                crystal = replace(crystal, valence=stated)
            with told_as(file, getattr(crystal, "name", NO_DENSITY)):
                answers.append(named(answer(crystal, model, calibration, potential is not None), file))
        except EcdError as error:
            failed.append(error)
        except DAMAGED as error:
            if not model.endswith(".npz"):
                raise
            what = " ".join(f"cannot predict ({type(error).__name__}: {error})".split())[:200]
            raise EcdError(model, what, "If it is damaged, train it again.") from error
    records = [record for each in answers for record in each.records]
    if csv is not None and records:
        with atomic_write(csv) as temporary:
            table(answers).to_csv(temporary, index=False)
    if as_json:
        known = [{k: None if v != v else v for k, v in r.items() if k != "seen"} for r in records]  # JSON has no NaN
        print(json.dumps(known, indent=1, ensure_ascii=False))
    elif records and str(csv) not in STDOUT:
        _table([{**r, "value": f"{r['value']:.4g}", "95 %": interval(r)} for r in records], PREDICTED)
        print("\n".join(f"{each.records[0]['file']}: {line}" for each in answers for line in each.notes))
    for text in dict.fromkeys(f"{r['file']}: {w}" for r in records for w in r["warnings"]) if not as_json else ():
        print(f"warning: {text}", file=sys.stderr)
    for failure in failed:
        print(f"ecd: {failure}", file=sys.stderr)
    if failed:
        raise typer.Exit(2)


#: Columns of what `ecd predict` prints.
PREDICTED = ["file", "property", "value", "95 %", "unit"]


@app.command("calibrate")
def calibrate_command(
    compounds: Annotated[
        list[str],
        typer.Argument(help="FILE=NAME: your density of a bundled crystal, CHGCAR.V=V_229; simplest compounds first"),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="calibration to write (.csv)")],
    valence: Valences = "",
) -> None:
    """Fit two numbers to each element of your potentials, so that d metals convert as accurately as the rest.

    Compute a bundled crystal that holds the element, at our geometry (`ecd convert V_229 POSCAR` writes it), with your
    code and potentials; then `ecd predict --calibration` uses the numbers for all compounds of the element.
    """
    from dataclasses import replace

    from ecdlib.density.cell import resample
    from ecdlib.density.io import read_density
    from ecdlib.density.valence import (
        apart,
        calibrate,
        is_standard,
        parse_valence,
        recognize,
        to_convention,
        write_calibration,
    )

    check_output(out, compounds)
    if out.suffix != ".csv":
        raise EcdError(out, "is not a file name for a calibration", "It must end in .csv.")
    stated = parse_valence(valence)
    found: dict[str, tuple[int, float, float, str]] = {}
    fits = []
    for text in compounds:
        file, equals, name = text.rpartition("=")
        if not equals:
            raise EcdError(text, "is not FILE=NAME", "For example: CHGCAR.V=V_229")
        density, reference = read_density(file), read_density(name)
        if stated:
            density = replace(density, valence=stated)
        electrons = recognize(density).electrons
        new = [e for e in electrons if e not in found]
        if not new:
            raise EcdError(text, "holds only elements that are already calibrated", "Leave it out.")
        if not is_standard(recognize(reference)):
            raise EcdError(text, f"{name} was not computed with our recipe", "Name a bundled crystal, such as V_229.")
        if other := [e for e, n in electrons.items() if e in found and found[e][0] != n]:
            what = f"was computed with other potentials for {', '.join(other)} than the compounds before it"
            raise EcdError(text, what, "Calibrate each set of potentials separately.")
        known = {e: row[1:3] for e, row in found.items()}
        numbers = calibrate(density, reference, new, known=known)
        wanted = to_convention(reference).values
        before, after = (
            apart(resample(to_convention(density, calibration=c).values, reference.shape), wanted)
            for c in (known, known | numbers)
        )
        fits.append(
            f"{file}: differs from {name} by {100 * before:.2g} % by whole shells, {100 * after:.2g} % calibrated"
        )
        found |= {e: (electrons[e], *numbers[e], name) for e in new}
    write_calibration(out, found)
    print("\n".join(fits))
    columns = ["element", "valence", "a (e·Å²)", "b (e·Å⁴)", "from"]
    rows = [(e, n, f"{x:.5f}", f"{y:.6f}", name) for e, (n, x, y, name) in found.items()]
    _table([dict(zip(columns, row, strict=True)) for row in rows], columns)
    print(f"written: {out}")


@app.command("app")
def app_command(
    port: Annotated[int, typer.Option(help="port on this machine; 0 takes a free one")] = 5006,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open it in the browser")] = True,
) -> None:
    """Open the graphical interface: predictions for dropped files, and the latent database."""
    from ecdlib.app import serve

    serve(port, browser)


@app.command()
def train(
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated")] = None,
    profile: Annotated[Profile, typer.Option(help="profile to start from")] = Profile.quick,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="result file to write (.npz)")] = None,
    labels: Annotated[Path | None, typer.Option(help="train on the labels of this table (.csv)")] = None,
    column: Annotated[str, typer.Option(help="of the labels; may be left out if only one holds numbers")] = "",
    unit: Annotated[
        str, typer.Option(help="of the labels, where the column is not called like 'K (GPa)'; 1: none")
    ] = "",
) -> None:
    """Train a model; resumes an interrupted run.

    On the bundled densities, with the parameters of the notebook 'training' (`ecd list`); or with --labels on your own:
    a CSV file with one crystal a row (a column of CIF, POSCAR or other files) and a column of numbers.
    """
    if labels is not None:
        _train_on_labels(labels, column, unit, out)
        return
    if column or unit:
        raise EcdError("--column, --unit", "are of a table", "Add: --labels FILE.csv")
    from ecdlib.learn.lean import TrainingParameters, run_lean, table2_errors

    p = _values("training", parameter, profile)
    assert isinstance(p, TrainingParameters)
    path = out or Path(p.file_name)
    _check_npz(path, "result file", _texts(p))
    result = run_lean(p, path)
    for target in result.targets:
        errors = {k: f"{v:.3g}" for k, v in table2_errors(result, target).items() if v == v}
        print(f"{target}: mean absolute errors {errors}")
    print(f"written: {path}")


def _train_on_labels(labels: Path, column: str, unit: str, out: Path | None) -> None:
    from ecdlib.learn.own_labels import read_labels, train_on_labels

    path = out or labels.with_suffix(".npz")
    _check_npz(path, "model file", [labels])
    data = read_labels(labels, column, unit)
    if path.exists():
        raise EcdError(path, "is there already", "Remove it, or choose another name with --out.")
    found = train_on_labels(data, labels, path)
    own, mean = (f"{found[key]:.3g} {data.unit}".rstrip() for key in ("MAE", "MAE of the mean"))
    print(f"{data.column}: {len(data.labels)} crystals, 5-fold cross-validation, all of a formula in one fold")
    print(f"mean absolute error {own} (of the mean alone: {mean}), R2 {found['R2']:.3f}")
    print(f"{100 * found['within']:.0f} % of the labels lie within their 95 % interval")
    print(f"written: {path}; use it with: ecd predict FILE --model {path}")


@app.command("train-autoencoder")
def train_autoencoder_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="file to write (.npz)")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated")] = None,
    profile: Annotated[Profile, typer.Option(help="profile to start from")] = Profile.quick,
) -> None:
    """Train an autoencoder with the parameters of the notebook 'autoencoder'; resumes an interrupted run."""
    from ecdlib.learn.autoencoder import AutoencoderParameters, train_autoencoder

    p = _values("autoencoder", parameter, profile)
    assert isinstance(p, AutoencoderParameters)
    _check_npz(out, "result file", _texts(p))
    result = train_autoencoder(p, out)
    print(f"mean squared error on validation crystals: {result.validation.min():.3g} (e/Å³)²\nwritten: {out}")


@app.command()
def reproduce(
    profile: Annotated[Profile, typer.Option(help="full: the papers' settings; tiny: for tests")] = Profile.full,
    minutes: Annotated[float, typer.Option(min=0, help="after which it stops, between two epochs")] = 13,
    device: Annotated[Device, typer.Option(help="where it trains")] = Device.auto,
    precision: Annotated[Precision, typer.Option(help="of the convolutions")] = Precision.float32,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the results")] = Path("reproduced"),
    only: Annotated[
        list[str] | None, typer.Option(help="trainings whose name holds this text; may be repeated")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(help="train nothing, write what another machine needs for it (.zip)")
    ] = None,
    from_pack: Annotated[Path | None, typer.Option("--from", help="run what such a file holds")] = None,
) -> None:
    """Train at the papers' own scale, in order of worth, until the minutes are over; resumes.

    A machine with torch, scipy, pandas, scikit-learn and h5py runs a pack by itself: python FILE --minutes 13
    """
    from ecdlib import reproduce as work

    if pack is not None and from_pack is not None:
        raise EcdError("--pack, --from", "exclude each other", "Give one of them.")
    if pack is not None:
        check_output(pack)
        if pack.suffix != ".zip":
            raise EcdError(pack, "is not a file name for a pack", "It must end in .zip.")
        print(f"written: {pack}, {work.pack(pack, profile.value, only or []) / 1e6:.1f} MB")
    elif from_pack is not None:
        if status := work.from_pack(check_input(from_pack), out, minutes, device.value, precision.value):
            raise typer.Exit(status)
    else:
        work.reproduce(out, profile.value, minutes, device.value, only or [], precision.value)


@app.command()
def encode(
    files: Annotated[list[str], typer.Argument(help="CHGCAR, cube, npz, whole stores (.h5) or bundled names")],
    out: Annotated[Path, typer.Option("-o", "--out", help="latent database to write (.npz)")],
    autoencoder: Annotated[str, typer.Option(help="a shipped one, or a file from `ecd train-autoencoder`")] = (
        "periodic-16"
    ),
) -> None:
    """Compress densities into a latent database (lossy; `ecd convert` to .h5 is lossless)."""
    from dataclasses import replace

    from ecdlib.density.io import read_density
    from ecdlib.density.store import DensityStore
    from ecdlib.learn.latents import write_latents
    from ecdlib.learn.model_file import load_model

    _check_npz(out, "latent database", [*files, autoencoder])
    whole = {f: [f"{f}::{name}" for name in DensityStore(f).names] for f in files if f.endswith(".h5")}
    sources = [source for f in files for source in whole.get(f, [f])]
    alike = len({Path(source).name for source in sources}) < len(sources)  # many folders hold a CHGCAR
    read = ((source, _warn(source, read_density(source))) for source in sources)
    densities = (replace(density, name=source) if alike else density for source, density in read)
    write_latents(out, densities, load_model(autoencoder, "autoencoder"))
    print(f"{len(sources)} densities encoded: {out}")


@app.command()
def decode(
    name: Annotated[str, typer.Argument(help="crystal in the latent database, e.g. Fe3SnC_221")],
    target: Annotated[Path, typer.Argument(help="file to write: *.cube, *.npz, otherwise a CHGCAR")],
    database: Annotated[
        Path | None, typer.Option(help="latent database (default: that of the bundled densities)")
    ] = None,
) -> None:
    """Reconstruct a density from its latent, for example as a CHGCAR that VESTA opens."""
    from ecdlib.density.io import writer
    from ecdlib.learn.latents import load_latents

    check_output(target, [database], stdout=True)
    write = writer(target)  # before anything is decoded
    density = load_latents(database).decode(name)
    write(density, target)
    _say(f"{density}\nwritten: {target}", target)


@app.command("train-fusion")
def train_fusion(
    out: Annotated[Path, typer.Option("-o", "--out", help="result file to write (.npz)")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated")] = None,
    final: Annotated[Path | None, typer.Option(help="also train on all crystals, and write that model here")] = None,
    profile: Annotated[Profile, typer.Option(help="profile to start from")] = Profile.quick,
) -> None:
    """Evaluate a model on latents and composition with the parameters of the notebook 'fusion'; resumes."""
    from ecdlib.learn.fusion import FusionParameters, run_fusion, train_final

    p = _values("fusion", parameter, profile)
    assert isinstance(p, FusionParameters)
    _check_npz(out, "result file", _texts(p))
    if final is not None:
        check_output(final, [out, *_texts(p)])
    whole = p.cross_validate and p.crystals == "densities"
    if final is not None and (final.suffix != ".npz" or not whole):
        remedy = "Let its name end in .npz, and set cross_validate=true and crystals=densities."
        raise EcdError(final, "a final model needs a cross-validation on crystals with densities", remedy)
    result = run_fusion(p, out)
    print(f"written: {out}")
    if final is not None:
        train_final(p, result, final)
        print(f"written: {final}")


@app.command("train-cgcnn")
def train_cgcnn(
    out: Annotated[Path, typer.Option("-o", "--out", help="result file to write (.npz)")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated")] = None,
    final: Annotated[Path | None, typer.Option(help="also train on all crystals, and write that model here")] = None,
    profile: Annotated[Profile, typer.Option(help="profile to start from")] = Profile.quick,
) -> None:
    """Train crystal graph networks with the parameters of the notebook 'cgcnn'; resumes an interrupted run."""
    from ecdlib.learn.elasticity import CgcnnParameters, run_elasticity, train_ensemble
    from ecdlib.learn.evaluation import scores

    p = _values("cgcnn", parameter, profile)
    assert isinstance(p, CgcnnParameters)
    _check_npz(out, "result file", _texts(p))
    if final is not None:
        check_output(final, [out, *_texts(p)])
    whole = p.model == "cgcnn" and p.crystals != "fusion" and p.target == "all" and p.ties
    whole = whole and p.folds == "all" and p.members > 1
    if final is not None and (final.suffix != ".npz" or final == out or not whole):
        remedy = (
            "Give it its own name in .npz, set folds=all and members=2 or more, and leave the rest at its defaults."
        )
        raise EcdError(final, "a final model needs an ensemble for K and G on all folds", remedy)
    result = run_elasticity(p, out)
    for target in result.targets:
        print(target, {k: round(v, 4) for k, v in scores(*result.pair(target)).items()})
    print(f"written: {out}")
    if final is not None:
        train_ensemble(p, result, final)
        print(f"written: {final}")


@app.command("screen")
def screen_command(
    sources: Annotated[
        list[str],
        typer.Argument(help=SOURCES_HELP),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="table to write (.parquet)")],
    model: Annotated[
        str, typer.Option(help="cgcnn, crystal (more accurate, slower), or a file from `ecd train-cgcnn --final`")
    ] = "cgcnn",
    paper_filter: Annotated[
        bool,
        typer.Option(
            "--paper-filter", help="only compounds, nothing radioactive, no band gap known to be outside 0.1-3 eV"
        ),
    ] = False,
    api_key: Annotated[str | None, typer.Option(help="Materials Project key; or set MP_API_KEY")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler (default: processes on this machine)")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="local processes (default: one per core)")] = None,
) -> None:
    """Elastic moduli, sound velocities and Debye temperatures of many crystals; resumes an interrupted run."""
    from ecdlib.crystals.screening import screen

    check_output(out, [*sources, model])
    if out.suffix != ".parquet":
        raise EcdError(out, "is not a file name for a table", "It must end in .parquet.")
    done = screen(
        sources, out, model=model, paper_filter=paper_filter, api_key=api_key, scheduler=scheduler, workers=workers
    )
    print(f"{done.predicted} crystals predicted: {out}" + " (already finished)" * done.before)
    for message in done.failed[:20]:
        print(f"skipped: {message}", file=sys.stderr)
    if done.failed:
        print(f"{len(done.failed)} crystals could not be used", file=sys.stderr)
        raise typer.Exit(2)


@app.command()
def data() -> None:
    """List the bundled densities."""
    from ecdlib.density.store import load_densities

    for store in (load_densities("cubic-all"), load_densities("general-all")):
        rows: list[Any] = store.table.reset_index().assign(set=store.path.stem).to_dict("records")
        _table(rows, ["name", "set", "spacegroup", "n_atoms", "n_electrons", "grid"])


class Way(StrEnum):
    superposed = "superposed"
    gpaw = "gpaw"
    charge3net = "charge3net"


class Electrons(StrEnum):
    gpaw = "gpaw"
    chemical = "chemical"


@app.command("density")
def density_command(
    structure: Annotated[
        str, typer.Argument(help="CIF, POSCAR or another file of one crystal, or the name of a labelled crystal")
    ],
    way: Annotated[
        Way,
        typer.Option("--with", help="superposed: free atoms; gpaw: a calculation; charge3net: a network"),
    ] = Way.superposed,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="density to write: *.npz, *.cube, otherwise a CHGCAR")
    ] = Path("density.npz"),
    convention: Annotated[
        Electrons | None,
        typer.Option(help="with superposed: gpaw (default), the valence of our data; chemical, without closed shells"),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="with gpaw: another PAW data set for an element; Na=1 takes Na.1.PBE"),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="with gpaw: the Python that has it (default: the first one found)")
    ] = None,
) -> None:
    """The density of a crystal: superposed free atoms, a calculation with our recipe, or VASP's by a network."""
    from pymatgen.core import Element

    from ecdlib.data.structures import read_structure, structure_warnings
    from ecdlib.density import io

    check_output(out, [structure], stdout=True)
    write = io.writer(out)  # before anything is computed
    chosen = {element: name for element, _, name in (text.partition("=") for text in sets or [])}
    if not all(name and Element.is_valid_symbol(element) for element, name in chosen.items()):
        raise EcdError("--set " + ",".join(sets or []), "is not element=name", "For example: --set Na=1")
    if way is not Way.gpaw and (sets or python):
        raise EcdError("--set" if sets else "--python", "applies only to a calculation", "Add: --with gpaw")
    if way is not Way.superposed and convention:
        raise EcdError(
            "--convention",
            "applies only to superposed atoms",
            "Convert the density afterwards: ecd convert --convention",
        )
    crystal = read_structure(structure)
    for text in structure_warnings(crystal):
        print(f"warning: {structure} {text}", file=sys.stderr)
    if way is Way.superposed:
        from ecdlib.density.superpose import superpose

        density = superpose(crystal, "chemical" if convention is Electrons.chemical else "gpaw")
        write(density, out)
    elif way is Way.charge3net:
        from ecdlib.density.charge3net import predict_density

        density = predict_density(crystal, name=crystal.composition.reduced_formula)
        write(density, out)
    else:
        from ecdlib.dft.compute import compute_density

        npz = out if out.suffix == ".npz" else None
        density = compute_density(crystal, npz, sets=chosen, python=python)
        if npz is None:
            write(density, out)
    _say(f"{density}\nwritten: {out}", out)


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="jarvis or materials-project")],
    ids: Annotated[list[str], typer.Argument(help="JVASP-1002 … or mp-149 …")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="folder to write to")] = Path("downloads"),
    api_key: Annotated[str | None, typer.Option(help="Materials Project key; or set MP_API_KEY")] = None,
) -> None:
    """Download charge densities from the original sources; hashes and task ids go into manifest.json."""
    from ecdlib.crystals.download import fetch_jarvis, fetch_materials_project

    if source == "jarvis":
        paths = fetch_jarvis(ids, folder)
    elif source == "materials-project":
        paths = fetch_materials_project(ids, folder, api_key=api_key)
    else:
        raise EcdError(source, "no such source", "Choose jarvis or materials-project.")
    for path in paths:
        print(path)


course_app = typer.Typer(no_args_is_help=True, context_settings=HELP_NAMES)
app.add_typer(course_app, name="course")
Folder = Annotated[Path, typer.Option("--folder", help="folder of the course")]


@course_app.callback()
def course() -> None:
    """The book as a course: hand out exercises, grade them."""
    needs_checkout("ecd course")


class Data(StrEnum):
    course = "course"
    full = "full"


@course_app.command("list")
def course_list() -> None:
    """List the exercises of all sessions."""
    from dataclasses import asdict

    from ecdlib.course.exercises import exercises

    _table([asdict(e) for e in exercises()], ["session", "name", "kind", "minutes", "points", "by_hand", "title"])


@course_app.command("slides")
def course_slides(
    session: Annotated[
        list[str] | None, typer.Option(help="only this session, for example session_2; may be repeated")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="where to write")] = Path("_build/course/lecture"),
) -> None:
    """Write the slides and a printable handout of each session; chapters that they show are run first, if need be."""
    from ecdlib.course.data import SESSIONS
    from ecdlib.course.slides import write_lecture

    unknown = [name for name in session or [] if name not in SESSIONS]
    if unknown:
        raise EcdError(unknown[0], "is not a session of the course", f"Choose one of: {', '.join(SESSIONS)}.")
    for page in write_lecture(folder, session or SESSIONS):
        print(page)


@course_app.command("make")
def course_make(
    session: Annotated[
        list[str] | None, typer.Option(help="only this session, for example session_2; may be repeated")
    ] = None,
    data: Annotated[Data, typer.Option(help="course: a small set, seconds; full: all cubic crystals")] = Data.course,
    folder: Folder = Path("_build/course"),
) -> None:
    """Make student versions, solutions, and the course in which nbgrader grades, from the exercises."""
    from ecdlib.course.data import SESSIONS
    from ecdlib.course.exercises import make

    make(session or SESSIONS, data.value, folder.resolve(), report=lambda line: print(line, flush=True))


@course_app.command("grade")
def course_grade(
    session: Annotated[str, typer.Argument(help="for example session_2")],
    student: Annotated[list[str] | None, typer.Option(help="only this student; may be repeated")] = None,
    seconds: Annotated[int, typer.Option(min=5, help="time limit of a cell; a notebook gets three times as long")] = 60,
    folder: Folder = Path("_build/course"),
) -> None:
    """Grade the notebooks in FOLDER/submitted/NUMBER/SESSION; write the mark sheet and the feedback."""
    from ecdlib.course.grading import grade

    table = grade(
        session, folder.resolve(), students=student, seconds=seconds, report=lambda line: print(line, flush=True)
    )
    _marks(table, session, folder)


@course_app.command("marks")
def course_marks(
    session: Annotated[str, typer.Argument(help="for example session_2")], folder: Folder = Path("_build/course")
) -> None:
    """Write mark sheet and feedback again, including marks given by hand in the meantime."""
    from ecdlib.course.grading import marks

    _marks(marks(session, folder.resolve()), session, folder)


@course_app.command("times")
def course_times(
    out: Annotated[Path, typer.Option("-o", "--out", help="file to write")] = Path("book/course/times.json"),
) -> None:
    """Time what a class runs: chapters (as last built), live commands, solutions of all exercises."""
    from ecdlib.course.pages import measure

    check_output(out)
    times = measure(report=lambda line: print(line, flush=True))
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


def _marks(table: Any, session: str, folder: Path) -> None:
    _table(table.reset_index().to_dict("records"), ["student", *table.columns])
    print(f"{folder / f'marks-{session}.csv'}, feedback in {folder / 'feedback'}")


def main() -> None:
    """Entry point: an :class:`EcdError` is one line and exit code 2, any other error one line and exit code 1."""
    show = "--traceback" in sys.argv  # wherever it stands
    sys.argv = [word for word in sys.argv if word != "--traceback"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is half-written goes
    try:
        app()
    except EcdError as error:
        if show:
            raise
        print(f"ecd: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever read standard output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except MemoryError:
        if show:
            raise
        print("ecd: out of memory. Give fewer or smaller files, or --workers 1.", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if show or (error.name or "").startswith("ecdlib"):
            raise
        print(f"ecd: {missing(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if show:
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"ecd: unexpected error ({what}). Please report it, with what --traceback shows.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
