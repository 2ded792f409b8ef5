"""Benchmark (not a test): what installing and asking the library costs, beside pydemi 0.2.0.

    python -m venv /tmp/pydemi && /tmp/pydemi/bin/pip install pydemi==0.2.0
    python tests/bench_library.py /tmp/pydemi/bin/python      writes data/results/library.json and library.md

Seconds are those of a processor, the least of three runs, so that what else the machine does hardly matters. Sizes are
those of the packages that an extra needs, as they are installed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from ecdlib.base.errors import atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import ROOT, data_folder

OUT = data_folder() / "results" / "library.json"
EXTRAS = ("", "networks", "screen", "cluster", "fusion", "app", "book", "course")
#: What a program of the neighbour's environment does, and prints as JSON.
THEIRS = """
import json, sys, time
from importlib.metadata import distributions, version
sizes = {d.metadata["Name"]: sum(f.size or 0 for f in d.files or []) for d in distributions()}
for tool in ("pip", "setuptools"):
    sizes.pop(tool, None)
import pydemi
pydemi.featurize(pydemi.read_chgcar(sys.argv[1]))
begun = time.process_time()
pydemi.featurize(pydemi.read_chgcar(sys.argv[1]))
found = {"version": version("pydemi"), "packages": len(sizes), "bytes": sum(sizes.values())}
found["55 descriptors"] = time.process_time() - begun
print(json.dumps(found))
"""


def processor_seconds(command: list[str], folder: Path) -> float:
    """Least of three runs of a program, user and system."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(seconds)


def here(function: Callable[[], Any]) -> float:
    """Processor seconds of a call, least of three."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        function()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def needed(extra: str) -> set[str]:
    """Packages that the core, or an extra with it, needs and that are installed here."""
    found: set[str] = set()
    todo = [("ecdlib", frozenset({extra} if extra else ()))]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name != "ecdlib":
            found.add(name)
        for line in requirements:
            r = Requirement(line)
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras or {""}):
                todo.append((r.name.lower().replace("_", "-"), frozenset(r.extras)))
    return found


def size(names: set[str]) -> int:
    """Bytes of installed packages."""
    return sum(file.size or 0 for name in names for file in distribution(name).files or [])


def wheel(what: str, folder: Path) -> int:
    """Bytes of a wheel, built or fetched."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, *(["--no-build-isolation"] if what == "." else []), what], check=True, cwd=ROOT)
    return max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime).stat().st_size


def measure(neighbour: str) -> dict[str, Any]:
    """All numbers."""
    import ecdlib as ecd
    from ecdlib.density.cell import resample

    begun = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        density = ecd.read("NaCl_225")
        density.structure.to(filename=str(folder / "crystal.cif"))
        vasp = ecd.read(str(data_folder() / "vasp" / "CHGCAR.NaCl.gz"))
        vasp.to_pymatgen().write_file(str(folder / "CHGCAR"))
        large = folder / "CHGCAR_96"
        finer = vasp.step("resampled", values=resample(vasp.values, (96, 96, 96)))
        finer.to_pymatgen().write_file(str(large))
        python, programs = sys.executable, {}
        for words in (
            "--help",
            "predict crystal.cif",
            "predict CHGCAR",
            "featurize CHGCAR -o f.h5",
            "convert CHGCAR rho.cube",
            "density crystal.cif -o rho.npz",
            "data",
        ):
            (folder / "f.h5").unlink(missing_ok=True)
            command = [python, "-c", "import sys; sys.argv[0] = 'ecd'; from ecdlib.cli import main; main()"]
            programs[f"ecd {words}"] = processor_seconds([*command, *words.split()], folder)
        sizes = {}
        for extra in EXTRAS:
            packages = needed(extra)
            sizes[extra or "none"] = {"packages": len(packages), "bytes": size(packages)}
        theirs = json.loads(
            subprocess.run([neighbour, "-c", THEIRS, str(large)], check=True, capture_output=True, text=True).stdout
        )
        theirs["wheel"] = wheel(f"pydemi=={theirs['version']}", folder)
        theirs["import"] = processor_seconds([neighbour, "-c", "import pydemi"], folder)
        return {
            "wheel": wheel(".", folder),
            "extras": sizes,
            "import": processor_seconds([python, "-c", "import ecdlib"], folder),
            "commands": programs,
            "properties": len(ecd.predict(density.structure)),
            "features of a file of 96³ voxels": {
                "14 named descriptors": here(lambda: ecd.Descriptors().featurize(large)),
                "121 invariants": here(lambda: ecd.Invariants().featurize(large)),
                "3,276 autocorrelations": here(lambda: ecd.Autocorrelation().featurize(large)),
            },
            "pydemi": theirs,
            "provenance": provenance("tests/bench_library.py", {}, time.time() - begun),
        }


def markdown(found: dict[str, Any]) -> str:
    """The tables of the book's page."""
    theirs, extras = found["pydemi"], found["extras"]

    def mb(number: float) -> str:
        return f"{number / 1e6:,.0f} MB"

    def s(number: float) -> str:
        return f"{number:.2g} s"

    features = found["features of a file of 96³ voxels"]
    ours = "; ".join(f"{name}: {s(seconds)}" for name, seconds in features.items())
    rows = [
        ("version", "this one", theirs["version"]),
        ("wheel", mb(found["wheel"]), mb(theirs["wheel"])),
        (
            "what the core needs, installed",
            f"{mb(extras['none']['bytes'])}, {extras['none']['packages']} packages",
            f"{mb(theirs['bytes'])}, {theirs['packages']} packages (with itself)",
        ),
        ("import", f"{s(found['import'])}; names are loaded when they are first used", s(theirs["import"])),
        ("properties of a structure", f"{found['properties']}", "22, of a VASP density (extra `props`)"),
        ("from a CHGCAR of 96³ voxels", ours, f"55 descriptors: {s(theirs['55 descriptors'])}"),
        (
            "takes",
            "structures; densities of any code (CHGCAR, cube, npz), pymatgen and ASE objects",
            "VASP densities; structures by a network (extra `ml`)",
        ),
        ("electrons of other potentials", "recognized and converted", "no"),
        ("uncertainty", "95 % interval for each crystal", "none for a single crystal"),
        ("interfaces", "command line, Python, scikit-learn, matminer, app", "command line, Python, app"),
        ("without a network", "yes", "yes"),
        ("licence", "MIT", "MIT"),
    ]
    lines = ["| | ecdlib | pydemi |", "| --- | --- | --- |", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""]
    lines += ["| extra | packages beside the core's | installed |", "| --- | --- | --- |"]
    core = extras["none"]
    for name, one in extras.items():
        if name != "none":
            lines.append(f"| `{name}` | {one['packages'] - core['packages']} | {mb(one['bytes'] - core['bytes'])} |")
    lines += ["", "| command | processor time |", "| --- | --- |"]
    lines += [f"| `{command}` | {s(seconds)} |" for command, seconds in found["commands"].items()]
    made = found["provenance"]
    lines += ["", f"Measured on {made['date']} at commit {made['commit'][:12]}: {made['device']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    found = measure(sys.argv[1])
    with atomic_write(OUT) as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(OUT.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
