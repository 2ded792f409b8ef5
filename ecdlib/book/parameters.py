"""One typed schema for each notebook: its parameters with units, limits and presets.

A new page is a new notebook plus one class here, listed in :data:`NOTEBOOKS`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from ecdlib.base.errors import EcdError
from ecdlib.base.settings import Parameters, Profile, Size, Subset
from ecdlib.learn.autoencoder import AutoencoderParameters
from ecdlib.learn.elasticity import CgcnnParameters
from ecdlib.learn.fusion import FusionParameters
from ecdlib.learn.lean import TrainingParameters


def _bundled(name: str) -> str:
    from ecdlib.density.store import load_densities

    if name not in load_densities("cubic-all") and name not in load_densities("general-all"):
        raise ValueError("is not a bundled crystal; `ecd data` lists them")
    return name


def _labelled(name: str) -> str:
    from ecdlib.data.tables import load_crystals

    if name not in load_crystals().index:
        raise ValueError("is not a labelled crystal; `ecd predict` takes files")
    return name


def _pair(name: str) -> str:
    from ecdlib.density.store import load_densities

    if name not in load_densities("pairs"):
        raise ValueError(f"is not a pair; choose one of {', '.join(load_densities('pairs').names)}")
    return name


def _density(file: str) -> str:
    from ecdlib.base.resources import ROOT
    from ecdlib.density.store import load_densities

    if Path(file).is_file() and not (ROOT / file).is_file():
        return str(Path(file).resolve())  # notebooks run in another folder
    plain = file.split("::")[0]
    found = (ROOT / plain).is_file() or Path(plain).is_file()
    if not (found or file in load_densities("cubic-all") or file in load_densities("general-all")):
        raise ValueError("is neither a file nor the name of a bundled crystal")
    return file


def _table(file: str) -> str:
    if file == "shipped":
        return file
    if not Path(file).is_file():
        raise ValueError("is not a file; make one with `ecd screen`, or take 'shipped'")
    return str(Path(file).resolve())  # notebooks run in another folder


Degree = Annotated[Literal[2, 4], BeforeValidator(int)]  # the command line gives text
Table = Annotated[str, AfterValidator(_table)]
Density = Annotated[str, AfterValidator(_density)]
Crystal = Annotated[str, AfterValidator(_bundled)]
Labelled = Annotated[str, AfterValidator(_labelled)]
PairName = Annotated[str, AfterValidator(_pair)]


class DatasetParameters(Parameters):
    """The crystals and their densities."""

    tiny: ClassVar[dict[str, Any]] = {"sample": 2}

    bins: int = Field(30, ge=5, le=200, description="bins of the histograms")
    sample: int = Field(10, ge=1, le=100, description="crystals written as CHGCAR to compare file sizes")


class PreprocessingParameters(Parameters):
    """Preparing a density: one cell, no negative charge."""

    tiny: ClassVar[dict[str, Any]] = {"crystals": 40}

    fcc_example: Crystal = Field("NaCl_225", description="crystal shown for the change of cell")
    negative_example: Crystal = Field("BaTiO3_221", description="crystal shown for the negative charge")
    crystals: int = Field(0, ge=0, description="random subset of all bundled crystals; 0: all")


class FeaturesParameters(Parameters):
    """From a density to features: the autocorrelation."""

    tiny: ClassVar[dict[str, Any]] = {"sample": 3}

    example: Crystal = Field("Fe3SnC_221", description="crystal shown")
    size: Size = Field(51, ge=3, le=201, description="odd number of voxels along each axis of the standard grid")
    voxel: float = Field(0.2, gt=0, le=2, description="voxel width in Å")
    sample: int = Field(20, ge=2, le=892, description="crystals on which the order of interpolation is compared")


class ArchitecturesParameters(Parameters):
    """Lean networks: few parameters, and fewer by symmetry."""

    tiny: ClassVar[dict[str, Any]] = {"batch": 1}

    architecture: Literal["A", "B", "C"] = Field("A", description="network of Table 1 that is drawn and timed")
    batch: int = Field(8, ge=1, le=500, description="crystals in the batch that is timed")


class ShortTrainingParameters(TrainingParameters):
    """Training, and why the input is whitened."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training crystals; the paper takes 650")
    first_cycle: int = Field(10, ge=1, description="epochs until the first warm restart")


class LeanResultsParameters(Parameters):
    """The lean networks, put to the test."""

    tiny: ClassVar[dict[str, Any]] = {"crystals": 150}

    crystals: Subset = Field(0, ge=0, description="random subset of the crystals for the parabola; 0: all")


class BeyondParameters(Parameters):
    """Beyond the paper: the best model on a density alone."""

    full: ClassVar[dict[str, Any]] = {"folds": 10}
    tiny: ClassVar[dict[str, Any]] = {"folds": 2, "crystals": 60}

    folds: int = Field(3, ge=2, le=100, description="folds of the cross-validation of each step")
    crystals: Subset = Field(0, ge=0, description="random subset of the cubic crystals; 0: all")


class AttentionParameters(Parameters):
    """Which distances the network uses."""

    tiny: ClassVar[dict[str, Any]] = {"shell": 2.0, "crystals": 150}

    shell: float = Field(0.5, gt=0.1, le=5, description="width of the shells of distance that are hidden, Å")
    crystals: Subset = Field(0, ge=0, description="random subset of the cubic crystals; 0: all")


class OwnCrystalParameters(Parameters):
    """Your own crystal: from a density to a prediction."""

    file: Density = Field("data/vasp/CHGCAR.NaCl.gz", description="density: a file, or the name of a bundled crystal")


class AnyCodeParameters(Parameters):
    """One crystal, many densities: valence conventions and the way between them."""

    tiny: ClassVar[dict[str, Any]] = {"pairs": 12}

    example: PairName = Field("NaI_225", description="crystal shown step by step, one of the pairs")
    smoothing: float = Field(0.3, ge=0.1, le=1, description="standard deviation of the Gaussian that smooths, Å")
    pairs: int = Field(0, ge=0, description="pairs that are compared, evenly chosen; 0: all")


class InputsParameters(Parameters):
    """What the calculation adds: superposed atoms, self-consistent densities, composition and a potential as inputs."""

    full: ClassVar[dict[str, Any]] = {"crystals": 300, "folds": 10}
    tiny: ClassVar[dict[str, Any]] = {"crystals": 60, "folds": 2}

    example: Crystal = Field("Si_227", description="crystal whose deformation density is shown")
    crystals: int = Field(100, ge=60, le=806, description="cubic crystals of the case that the page computes itself")
    folds: int = Field(3, ge=2, le=100, description="folds of that case")


class DescriptorsParameters(Parameters):
    """Named numbers of a density, and what they say about stiffness."""

    tiny: ClassVar[dict[str, Any]] = {"resamples": 20}

    example: Crystal = Field("Si_227", description="covalent crystal shown beside two metals and a salt")
    resamples: int = Field(300, ge=20, le=10_000, description="of the crystals, for the intervals of correlations")


class AnyCrystalParameters(Parameters):
    """All properties of any crystal from its structure: beside pydemi, on Matbench, intervals, new elements."""

    crystal: Labelled = Field("GeO2_136", description="labelled crystal that is answered as an example")


class FusionDataParameters(Parameters):
    """Labels of 6,059 crystals: crystal systems, distributions, and labels that cannot be right."""

    bins: int = Field(40, ge=5, le=200, description="bins of the histograms")


class LabelOriginsParameters(Parameters):
    """What the labels are made of: zeros of energy, Debye temperatures, polymorphs."""

    tiny: ClassVar[dict[str, Any]] = {"folds": 3}

    folds: int = Field(10, ge=2, le=20, description="folds in which the linear model of composition is evaluated")


class CostParameters(Parameters):
    """What a prediction saves: elastic constants from strained cells, counted and timed."""

    degree: Degree = Field(2, description="degree of the polynomial fitted to the energies of a deformation")


class ShortAutoencoderParameters(AutoencoderParameters):
    """The autoencoder: training, reconstruction, latent sizes."""

    full: ClassVar[dict[str, Any]] = {**AutoencoderParameters.full, "crystals": 0}

    batch_size: int = Field(8, ge=2, description="crystals in a step")
    crystals: Subset = Field(100, ge=0, description="random subset of the bundled crystals; 0: all")


class ShortCgcnnParameters(CgcnnParameters):
    """Crystal graph network: official folds, ensemble, uncertainty."""

    full: ClassVar[dict[str, Any]] = {**CgcnnParameters.full, "sample": 0}

    sample: Subset = Field(1500, ge=0, description="random subset of the crystals; 0: all")


class LatentDatabaseParameters(Parameters):
    """The latent database: how small, how exact, and how to use it."""

    tiny: ClassVar[dict[str, Any]] = {"sample": 2}

    crystal: Crystal = Field("Fe3SnC_221", description="crystal that is decoded and shown")
    sample: int = Field(12, ge=2, le=200, description="crystals whose file sizes and errors are compared")


class RobustnessParameters(Parameters):
    """The same crystal, described differently: rotations, origins, supercells."""

    tiny: ClassVar[dict[str, Any]] = {"sample": 2}

    sample: int = Field(12, ge=2, le=100, description="test crystals that are described in several ways")


class TenLinesParameters(Parameters):
    """Charge density in ten lines: file, picture, latent, property."""

    file: Density = Field("data/vasp/CHGCAR.NaCl.gz", description="density: a file, or the name of a bundled crystal")


class ElasticQuantitiesParameters(Parameters):
    """Two moduli, seven quantities: sound, Poisson, Pugh, Debye."""

    crystal: Crystal = Field("TiN_225", description="crystal that is taken through the formulas and marked on the map")
    log10_std: float = Field(
        0.1, gt=0, le=0.3, description="standard deviation of log10 K and log10 G whose reach is shown"
    )


class TableAuditParameters(Parameters):
    """Forty printed rows: which numbers of a paper follow from its own equations."""

    highlight: float = Field(
        1.0, gt=0, le=100, description="deviation in per cent beyond which a number of the two tables is red"
    )


class ScreeningParameters(Parameters):
    """Screening: from known crystals to unknown ones."""

    full: ClassVar[dict[str, Any]] = {"sample": 80_000}
    tiny: ClassVar[dict[str, Any]] = {"sample": 60}

    sample: int = Field(1000, ge=50, le=80_000, description="hypothetical crystals that are predicted on the page")
    table: Table = Field("shipped", description="table that is shown: a file of `ecd screen`, or the shipped one")


class CandidatesParameters(Parameters):
    """Stiffest, most ductile, slowest: what such lists can be trusted for."""

    table: Table = Field("shipped", description="table that is sorted: a file of `ecd screen`, or the shipped one")
    top: int = Field(12, ge=3, le=100, description="rows of each list; lists that are judged are ten times as long")


class BaselineParameters(Parameters):
    """A first prediction: principal components and a Gaussian process."""

    tiny: ClassVar[dict[str, Any]] = {"size": 21, "n_components": 10, "folds": 3, "crystals": 60}

    size: Size = Field(51, ge=3, le=201, description="odd number of voxels along each axis of the standard grid")
    voxel: float = Field(0.2, gt=0, le=2, description="voxel width in Å")
    n_components: int = Field(25, ge=1, le=200, description="principal components kept")
    folds: int = Field(10, ge=2, le=100, description="folds of the cross-validation")
    crystals: int = Field(0, ge=0, description="random subset of the cubic crystals; 0: all")


#: Schema of each notebook, in the order of the book.
NOTEBOOKS: dict[str, type[Parameters]] = {
    "dataset": DatasetParameters,
    "preprocessing": PreprocessingParameters,
    "features": FeaturesParameters,
    "baseline": BaselineParameters,
    "architectures": ArchitecturesParameters,
    "training": ShortTrainingParameters,
    "lean_results": LeanResultsParameters,
    "beyond": BeyondParameters,
    "attention": AttentionParameters,
    "own_crystal": OwnCrystalParameters,
    "any_code": AnyCodeParameters,
    "inputs": InputsParameters,
    "descriptors": DescriptorsParameters,
    "any_crystal": AnyCrystalParameters,
    "fusion_data": FusionDataParameters,
    "label_origins": LabelOriginsParameters,
    "autoencoder": ShortAutoencoderParameters,
    "latent_database": LatentDatabaseParameters,
    "fusion": FusionParameters,
    "robustness": RobustnessParameters,
    "cost": CostParameters,
    "ten_lines": TenLinesParameters,
    "cgcnn": ShortCgcnnParameters,
    "elastic_quantities": ElasticQuantitiesParameters,
    "table_audit": TableAuditParameters,
    "screening": ScreeningParameters,
    "candidates": CandidatesParameters,
}


def schema(notebook: str) -> type[Parameters]:
    """Schema of a notebook.

    Raises:
        EcdError: no notebook of that name.
    """
    if notebook not in NOTEBOOKS:
        raise EcdError(notebook, "no such notebook", f"Choose one of: {', '.join(NOTEBOOKS)}.")
    return NOTEBOOKS[notebook]


def resolve(notebook: str, given: Mapping[str, Any], profile: Profile = "quick") -> Parameters:
    """Validated parameters: the preset of ``profile``, overridden by ``given`` (text is converted to its type).

    Raises:
        EcdError: an unknown name, or a value of the wrong type or out of range.
    """
    return schema(notebook).checked(given, profile, f"notebook '{notebook}'")


def changed(notebook: str, parameters: Parameters) -> dict[str, Any]:
    """What differs from the preset of the parameters' profile."""
    preset = resolve(notebook, {}, parameters.profile).model_dump()
    return {key: value for key, value in parameters.model_dump().items() if value != preset[key]}


def run_name(notebook: str, parameters: Parameters) -> str:
    """Name of a run and its page: the notebook's, then the profile if it is not ``quick``, then what was changed."""
    parts = [notebook] + ([parameters.profile] if parameters.profile != "quick" else [])
    parts += [f"{key}-{value}" for key, value in changed(notebook, parameters).items()]
    plain = [re.sub(r"[^A-Za-z0-9_.-]+", "-", part) for part in parts]
    if plain != parts:  # names that differ only in what a file name cannot hold stay apart
        plain.append(hashlib.sha256("".join(parts).encode()).hexdigest()[:6])
    return "--".join(plain)


def parameter_rows(notebook: str) -> list[dict[str, str]]:
    """One row per parameter: name, type, quick and full value, meaning."""
    kind, rows = schema(notebook), []
    for name, info in kind.model_fields.items():
        annotation: Any = info.annotation
        choices = get_args(annotation)
        kind_name = " | ".join(map(str, choices)) if choices else getattr(annotation, "__name__", str(annotation))
        quick = "quick" if name == "profile" else str(info.default)
        full = "full" if name == "profile" else str(kind.full.get(name, info.default))
        rows.append({"name": name, "type": kind_name, "quick": quick, "full": full, "meaning": info.description or ""})
    return rows


def title(notebook: str) -> str:
    """One line on what the notebook is about."""
    return (inspect.getdoc(schema(notebook)) or "").split("\n")[0]
