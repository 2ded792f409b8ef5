"""The trainings at the papers' own scale, in order of worth, within some minutes of a GPU.

A machine may have a GPU and little else: torch, numpy, scipy, pandas, scikit-learn and h5py, and no package index.
:func:`pack` writes what it needs into one file: features that are computed already, densities and labels, and the code.
There, ``python FILE --minutes 13 --device cuda`` or ``python -m ecdlib.reproduce FILE`` runs it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

PACK = "pack.json"
#: Dense products of a GPU's tensor cores a second, by precision (data sheets of the SXM cards); float32 is TF32 there.
PEAK = {
    "H100": {"float32": 494.7e12, "bfloat16": 989.4e12},
    "H200": {"float32": 494.7e12, "bfloat16": 989.4e12},
    "A100": {"float32": 156e12, "bfloat16": 312e12},
}


@dataclass(frozen=True)
class Training:
    """One result file: which command makes it, and with what beside the profile."""

    command: Literal["train", "train-autoencoder", "train-fusion"]
    given: dict[str, Any]

    def parameters(self, profile: str, device: str = "auto", precision: str = "float32") -> Any:
        """Those of the command; ``precision`` is that of the convolutions."""
        from ecdlib.learn.autoencoder import AutoencoderParameters
        from ecdlib.learn.fusion import FusionParameters
        from ecdlib.learn.lean import TrainingParameters

        kinds: dict[str, Any] = {
            "train": TrainingParameters,
            "train-autoencoder": AutoencoderParameters,
            "train-fusion": FusionParameters,
        }
        given = self.given | {"device": device}
        if self.command == "train-fusion":  # the autoencoder of this very run
            before = next(t for t in TRAININGS if t.given.get("route") == given["autoencoder"])
            given["autoencoder"] = before.file(before.parameters(profile))
        else:
            given["precision"] = precision
        return kinds[self.command].checked(given, profile)

    def file(self, p: Any) -> str:
        """Name of the result."""
        if self.command == "train":
            return str(p.file_name)
        if self.command == "train-autoencoder":
            return f"{p.route}-{p.channels}-{p.edge}.npz"
        route, _, edge = p.autoencoder.split("-")
        return f"{p.model}--{route}-{p.inputs.replace('+', '-')}--{edge}"

    def prepare(self, p: Any) -> None:
        """Ask for everything that the training reads and cannot compute with torch and scipy."""
        if self.command == "train":
            from ecdlib.learn.lean import crystals_of, inputs, pair_inputs

            inputs(p, list(crystals_of(p).index))
            pair_inputs(p)
        elif self.command == "train-autoencoder":
            from ecdlib.density.store import load_densities
            from ecdlib.learn.autoencoder import original_split

            original_split()
            load_densities("cubic")
            load_densities("general")
        else:
            from ecdlib.data.tables import load_crystals
            from ecdlib.features.common_grid import bundled_names
            from ecdlib.features.composition import magpie

            magpie(load_crystals().loc[bundled_names()])

    def run(self, p: Any, out: Path) -> None:
        """Train, or resume, and write the result."""
        how: dict[str, Any] = {"name": "ecd reproduce", "progress": False}
        if self.command == "train":
            from ecdlib.learn.lean import run_lean

            run_lean(p, out, **how)
        elif self.command == "train-autoencoder":
            from ecdlib.learn.autoencoder import train_autoencoder

            train_autoencoder(p, out, **how)
        else:
            from ecdlib.learn.fusion import run_fusion

            run_fusion(p, out, **how)

    def operations(self, p: Any) -> float:
        """Floating-point operations for one sample in one epoch: forward, and twice as many backward; 0: not known."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        share = 1.0
        if self.command == "train":
            from ecdlib.features.autocorrelation import cubic_orbits
            from ecdlib.learn.lean import build

            module = build(p).make_module()
            x = torch.zeros(1, p.channels, int(cubic_orbits(p.size).max()) + 1)
        elif self.command == "train-autoencoder":
            from ecdlib.learn.autoencoder import build_autoencoder, training_share

            module, x = build_autoencoder(p), torch.zeros(1, 1, *[p.edge] * 3)
            share = training_share(p)
        else:
            return 0.0
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module.eval()(x)
        return 3.0 * share * counter.get_total_flops()


#: What is worth most comes first: the networks that the papers credit, as published, then those beside them.
TRAININGS = (
    Training("train", {"model": "lean-a", "target": "bulk_modulus"}),
    Training("train", {"model": "lean-a", "target": "total_energy"}),
    Training("train-autoencoder", {"route": "padded"}),
    Training("train", {"model": "lean-c", "target": "both"}),
    Training("train", {"model": "lean-b", "target": "bulk_modulus"}),
    Training("train", {"model": "lean-b", "target": "total_energy"}),
    Training("train-autoencoder", {"route": "periodic"}),
    Training("train-fusion", {"model": "attention", "inputs": "latent+magpie", "autoencoder": "padded"}),
)


def chosen(
    profile: str, device: str = "auto", only: Sequence[str] = (), precision: str = "float32"
) -> list[tuple[Training, Any, str]]:
    """Trainings with their parameters and file names; ``only`` those whose name holds one of these texts.

    Raises:
        EcdError: none is left.
    """
    from ecdlib.base.errors import EcdError

    every = [(t, p, t.file(p)) for t in TRAININGS for p in [t.parameters(profile, device, precision)]]
    some = [each for each in every if not only or any(text in each[2] for text in only)]
    if not some:
        names = ", ".join(file.removesuffix(".npz") for *_, file in every)
        raise EcdError(f"--only {' '.join(only)}", "fits no training", f"There are: {names}.")
    return some


def reproduce(
    out: Path,
    profile: str = "full",
    minutes: float = 13,
    device: str = "auto",
    only: Sequence[str] = (),
    precision: str = "float32",
) -> bool:
    """Make the results that are missing in a folder, as far as the minutes reach; resumes between epochs.

    Prints a line for each: samples a second in the median over its epochs, and where the device's peak is known the
    share of it. Input is prepared before the first epoch, and is not interrupted.

    A training that fails does not stop those after it.

    Returns:
        Whether all are made, but for those that need packages which are not installed.

    Raises:
        EcdError: no such device, or trainings that failed; their reasons are printed.
    """
    from ecdlib.base.errors import EcdError
    from ecdlib.models.torch_regressor import OutOfTime, pick_device, stopwatch

    pick_device(device)
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    some = chosen(profile, device, only, precision)
    with stopwatch(60 * minutes) as whole, _grids_ahead(some), chdir(out):
        for training, p, file in some:
            if whole.left <= 0:
                print(f"{file}: no time left", flush=True)
                return False
            before, done = Path(file).is_file(), True
            with stopwatch(whole.left) as watch:
                try:
                    training.run(p, Path(file))
                    said = "was there already" if before else "done"
                except OutOfTime as stop:
                    said, done = f"stopped after {stop}; the same command resumes", False
                except ModuleNotFoundError as error:
                    said = f"left out: needs {error.name}, which is not installed"
                except (EcdError, RuntimeError) as error:  # torch's are of the second kind
                    said = f"failed: {error}"
                    failed.append(file)
                speed = _speed(training, p, watch.rate) if watch.epochs else ""
            print(f"{file}: {said}{speed}", flush=True)
            if not done:
                return False
    if failed:
        raise EcdError(out, f"lacks {', '.join(failed)}", "The reasons are printed above.")
    return True


@contextmanager
def _grids_ahead(some: Sequence[tuple[Training, Any, str]]) -> Iterator[None]:
    """While the first networks train, another process brings the densities to the periodic grids."""
    grids = [(p.edge, p.route) for t, p, _ in some[1:] if t.command == "train-autoencoder" and p.route == "periodic"]
    process = get_context("spawn").Process(target=_make_grids, args=(grids,), daemon=True)
    if grids:
        process.start()
    try:
        yield
    finally:
        if grids:
            process.terminate()


def _make_grids(grids: Sequence[tuple[int, Any]]) -> None:
    from ecdlib.features.common_grid import bundled_grids

    for edge, route in grids:
        bundled_grids(edge, route)


def _speed(training: Training, p: Any, rate: float) -> str:
    """Samples a second, and what share of the peak that is."""
    from ecdlib.models.torch_regressor import pick_device

    text = f"; {rate:,.0f} samples/s"
    if pick_device(p.device).type == "cuda":
        import torch

        device = torch.cuda.get_device_name()
        peak = next((of[getattr(p, "precision", "float32")] for name, of in PEAK.items() if name in device), 0.0)
        if peak and (operations := training.operations(p)):
            text += f", {100 * rate * operations / peak:.2g} % of the peak of {device}"
    return text


def pack(file: Path, profile: str = "full", only: Sequence[str] = ()) -> int:
    """Write what the trainings need on a machine that has torch, scipy, pandas, scikit-learn and h5py.

    Features are in single precision, as networks take them.

    Returns:
        Bytes of the file.
    """
    import numpy as np

    from ecdlib.base.cached import taken
    from ecdlib.base.errors import atomic_write
    from ecdlib.base.provenance import provenance
    from ecdlib.base.resources import ROOT, data_file, data_folder, needs_checkout, recording

    needs_checkout("ecd reproduce --pack")
    with taken() as values, recording() as reads:
        for training, p, _ in chosen(profile, "auto", only):
            training.prepare(p)
    with atomic_write(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as z:
        for source in sorted((ROOT / "ecdlib").rglob("*.py")):
            z.write(source, source.relative_to(ROOT))
        z.write(data_folder() / "manifest.json", "data/manifest.json")
        for name in sorted(name for name in reads if not name.endswith("/")):
            z.write(data_file(name), f"data/{name}")
        for name, arrays in values.items():
            content = io.BytesIO()
            single: Any = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
            np.savez(content, **single)
            z.writestr(f"packed/{name}", content.getvalue())
        z.writestr("commit.txt", provenance("", {}, 0)["commit"])
        z.writestr(PACK, json.dumps({"profile": profile, "only": list(only)}))
        z.writestr("__main__.py", "from ecdlib.reproduce import main\n\nmain(__file__)\n")
    return file.stat().st_size


def from_pack(file: Path, out: Path, minutes: float, device: str, precision: str = "float32") -> int:
    """Unpack beside ``out`` and run the code of the pack on its data.

    Returns:
        The exit status.
    """
    folder = out.absolute().with_name(f"{out.name}.pack")
    with zipfile.ZipFile(file) as z:
        settings = json.loads(z.read(PACK))
        z.extractall(folder)
    command = [sys.executable, "-m", "ecdlib.reproduce", "--out", str(out.absolute()), "--minutes", str(minutes)]
    command += ["--device", device, "--precision", precision, "--profile", settings["profile"]]
    command += [word for text in settings["only"] for word in ("--only", text)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ECDLIB_")}
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(command, cwd=folder, env=environment | {"PYTHONPATH": path}, check=False).returncode


def main(packed: str = "") -> None:
    """The same without the command line's packages.

    Args:
        packed: path inside the pack that runs itself.
    """
    parser = argparse.ArgumentParser(prog="python -m ecdlib.reproduce", description=(__doc__ or "").split("\n")[0])
    if not packed:
        parser.add_argument("file", nargs="?", type=Path, help="pack that `ecd reproduce --pack` wrote")
    parser.add_argument("--profile", default="full", choices=("tiny", "quick", "full"))
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the convolutions")
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="folder of the results")
    parser.add_argument("--only", action="append", default=[], help="trainings whose name holds this text")
    given = parser.parse_args()
    file = Path(packed).parent if packed else given.file
    if file is not None:
        raise SystemExit(from_pack(file, given.out, given.minutes, given.device, given.precision))
    from ecdlib.base.errors import EcdError

    try:
        reproduce(given.out, given.profile, given.minutes, given.device, given.only, given.precision)
    except EcdError as error:
        raise SystemExit(f"ecdlib: {error}") from None


if __name__ == "__main__":
    main()
