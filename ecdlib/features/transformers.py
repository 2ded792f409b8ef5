"""Features as transformers of scikit-learn and featurizers of matminer, in one: thin, around plain functions.

They take densities, structures (pymatgen or ASE) and files. Nothing is fitted, so that a transformer may stand before a
split or inside a pipeline alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from matminer.featurizers.base import BaseFeaturizer
from pymatgen.core import Structure
from sklearn.utils import TransformerTags

from ecdlib.data.structures import read_structure
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.io import read_density
from ecdlib.density.superpose import SUPERPOSED, structure_of, superpose
from ecdlib.density.valence import Target, to_convention
from ecdlib.features.autocorrelation import QUANTILES, Field
from ecdlib.features.autocorrelation import cubic_average as distinct
from ecdlib.features.collection import FeatureSettings
from ecdlib.features.collection import featurize as standard_features
from ecdlib.features.composition import magpie_features, magpie_labels
from ecdlib.features.crystal import crystal_features, log_invariants
from ecdlib.features.descriptors import UNITS, density_descriptors, structure_descriptors
from ecdlib.features.invariants import DEGREES, RADII, density_invariants, structure_invariants
from ecdlib.features.potential import tensor_features
from ecdlib.features.sevennet import potential_tensors

Convention = Literal["computed", "gpaw", "chemical"]


def as_density(crystal: Any, convention: Target = "gpaw") -> ChargeDensity:
    """A density as it is, that of a file, or superposed atoms of a structure in a convention."""
    if isinstance(crystal, ChargeDensity):
        return crystal
    if isinstance(crystal, (str, os.PathLike)):
        return read_density(crystal)
    return superpose(read_structure(crystal), convention)


def as_structure(crystal: Any) -> Structure:
    """The structure of a density, or what :func:`ecdlib.data.structures.read_structure` reads."""
    return structure_of(crystal) if isinstance(crystal, ChargeDensity) else read_structure(crystal)


def _holds_density(crystal: Any) -> bool:
    """Whether there is more than superposed atoms, which say no more than the structure."""
    if isinstance(crystal, ChargeDensity):
        return not (crystal.convention or "").startswith(SUPERPOSED)
    return isinstance(crystal, (str, os.PathLike))


class Features(BaseFeaturizer):
    """What all transformers share.

    A subclass has :meth:`featurize` (one crystal) and :meth:`feature_labels`; from them follow ``transform``,
    ``get_feature_names_out``, ``set_output``, and matminer's ``featurize_dataframe``. That uses one process, unless
    ``set_n_jobs`` says otherwise.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation, tags.requires_fit = False, True, False
        tags.transformer_tags = TransformerTags()  # matminer's order of base classes loses them
        return tags

    @property
    def n_jobs(self) -> int:
        """Processes of ``featurize_dataframe``."""
        return int(getattr(self, "_n_jobs", 1))

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Nothing is fitted."""
        return self

    def transform(self, X: Iterable[Any]) -> Floats:
        """Features of crystals, ``(n, k)``."""
        return np.array([self.featurize(crystal) for crystal in X], dtype=np.float64)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Names of the columns, ``(k,)``."""
        return np.array(self.feature_labels(), dtype=object)

    def citations(self) -> list[str]:
        """BibTeX, for matminer."""
        return ["@misc{ecdlib, title={ecdlib: crystal properties from electron charge densities}}"]

    def implementors(self) -> list[str]:
        """For matminer."""
        return ["ecdlib contributors"]


@dataclass(eq=False, repr=False)
class Autocorrelation(Features):
    """The autocorrelation of the density at the voxels of the standard grid that are distinct under m-3m.

    See :func:`ecdlib.features.collection.featurize` and :func:`ecdlib.features.autocorrelation.cubic_average`: nothing
    is lost for cubic crystals of Laue class m-3m, for others the 48 orientations are averaged.

    Args:
        size: odd number of voxels along each axis; 51 gives 3,276 features.
        voxel: width, Å.
        field: ``"sqrt"`` correlates √ρ, ``"density"`` ρ.
        convention: see :class:`ecdlib.features.collection.FeatureSettings`.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> Autocorrelation(size=3).set_output(transform="pandas").transform([load_density("LiH_225")]).round(3)
           f(0,0,0)  f(0.2,0,0)  f(0.2,0.2,0)  f(0.2,0.2,0.2)
        0     0.123       0.122         0.121            0.12
    """

    size: int = 51
    voxel: float = 0.2
    field: Field = "sqrt"
    convention: Convention = "computed"

    def featurize(self, crystal: Any) -> Floats:
        """``(k,)``, k = h(h + 1)(h + 2)/6 with h = (size + 1)/2."""
        settings = FeatureSettings(self.size, self.voxel, self.field, convention=self.convention)
        return distinct(standard_features(as_density(crystal), settings)[0]["autocorrelation"])

    def feature_labels(self) -> list[str]:
        """``f(x,y,z)`` with x ≥ y ≥ z in Å."""
        steps = [f"{i * self.voxel:.4g}" for i in range(self.size // 2 + 1)]
        triples = ((a, b, c) for a in range(len(steps)) for b in range(a + 1) for c in range(b + 1))
        return [f"f({steps[a]},{steps[b]},{steps[c]})" for a, b, c in triples]


@dataclass(eq=False, repr=False)
class Quantiles(Features):
    """Densities below which given shares of the cell lie, e/Å³.

    See :func:`ecdlib.features.autocorrelation.density_quantiles`.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> Quantiles().set_output(transform="pandas").transform([load_density("LiH_225")])["rho_50%"].round(3)
        0    0.072
        Name: rho_50%, dtype: float64
    """

    convention: Convention = "computed"

    def featurize(self, crystal: Any) -> Floats:
        """``(12,)``."""
        settings = FeatureSettings(size=1, convention=self.convention)
        return standard_features(as_density(crystal), settings)[0]["quantiles"]

    def feature_labels(self) -> list[str]:
        """``rho_50%`` is the median."""
        return [f"rho_{100 * share:g}%" for share in QUANTILES]


@dataclass(eq=False, repr=False)
class Invariants(Features):
    """Rotation-invariant 2-point statistics of a crystal of any lattice, as logarithms.

    Of a structure those of its superposed atoms. See :mod:`ecdlib.features.invariants` and
    :func:`ecdlib.features.crystal.log_invariants`.

    Args:
        convention: to which a density is converted, or in which atoms are superposed.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> Invariants().transform([copper]).shape
        (1, 121)
    """

    convention: Target = "gpaw"

    def featurize(self, crystal: Any) -> Floats:
        """``(121,)``."""
        if _holds_density(crystal):
            return log_invariants(density_invariants(to_convention(as_density(crystal), self.convention)))
        return log_invariants(structure_invariants(as_structure(crystal).get_reduced_structure(), self.convention))

    def feature_labels(self) -> list[str]:
        """``ln p0(r)`` and ``ln p2/p0(r)``, r in Å."""
        others = [f"ln p{degree}/p0({r:g})" for degree in DEGREES[1:] for r in RADII[1:]]
        return [f"ln p0({r:g})" for r in RADII] + others


@dataclass(eq=False, repr=False)
class Descriptors(Features):
    """Named numbers of a density: its mean, its correlation length, what it is in bonds and in holes.

    Of a structure those of its superposed atoms. See :mod:`ecdlib.features.descriptors`.

    Args:
        convention: to which a density is converted, or in which atoms are superposed.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> Descriptors().set_output(transform="pandas").transform([load_density("LiH_225")])["mean (e/Å³)"].round(3)
        0    0.123
        Name: mean (e/Å³), dtype: float64
    """

    convention: Target = "chemical"

    def featurize(self, crystal: Any) -> Floats:
        """``(14,)``."""
        if _holds_density(crystal):
            return density_descriptors(as_density(crystal), self.convention).to_numpy()
        return structure_descriptors(as_structure(crystal), self.convention).to_numpy()

    def feature_labels(self) -> list[str]:
        """Names and units."""
        return [name if unit == "1" else f"{name} ({unit})" for name, unit in UNITS.items()]


@dataclass(eq=False, repr=False)
class Composition(Features):
    """The 132 MAGPIE features of the composition (:func:`ecdlib.features.composition.magpie_features`).

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> copper = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> float(Composition().set_output(transform="pandas").transform([copper])["MagpieData mean Number"].iloc[0])
        29.0
    """

    def featurize(self, crystal: Any) -> Floats:
        """``(132,)``."""
        return magpie_features([as_structure(crystal).composition.reduced_formula])[0]

    def feature_labels(self) -> list[str]:
        """Matminer's names."""
        return magpie_labels()


@dataclass(eq=False, repr=False)
class CrystalFeatures(Features):
    """All that the model of structures sees of a crystal (:func:`ecdlib.features.crystal.crystal_features`).

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> import pandas as pd
        >>> copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> frame = pd.DataFrame({"structure": [copper]})
        >>> CrystalFeatures().featurize_dataframe(frame, "structure", pbar=False).shape
        (1, 765)
    """

    def featurize(self, crystal: Any) -> Floats:
        """``(764,)``."""
        return np.concatenate([block[0] for block in crystal_features([as_structure(crystal)]).values()])

    def feature_labels(self) -> list[str]:
        """Name of the block and number in it, or the block's own names."""
        blocks = crystal_features([Structure(np.eye(3) * 3.6, ["Cu"], [[0, 0, 0]])])
        return [f"{name} {i}" for name, block in blocks.items() for i in range(block.shape[1])]


@dataclass(eq=False, repr=False)
class PotentialTensor(Features):
    """What a foundation potential computes of a crystal (:func:`ecdlib.features.potential.tensor_features`).

    It needs the extra ``potential`` and seconds for a small cell.

    Example:
        >>> PotentialTensor().get_feature_names_out()[[0, 10, 23]]
        array(['clamped ln K_V', 'relaxed ln K_V', 'relaxes'], dtype=object)
    """

    def transform(self, X: Iterable[Any]) -> Floats:
        """Features of crystals, ``(n, 24)``, in one batch."""
        return tensor_features(potential_tensors([as_structure(crystal) for crystal in X], progress=False))

    def featurize(self, crystal: Any) -> Floats:
        """``(24,)``."""
        return self.transform([crystal])[0]

    def feature_labels(self) -> list[str]:
        """Moduli after Voigt and Reuss and eigenvalues (ln GPa) of both tensors, residual stress, softest mode."""
        moduli = [f"ln {modulus}_{average}" for average in "VR" for modulus in "KG"]
        own = [*moduli, *(f"ln eigenvalue {i}" for i in range(1, 7))]
        rest = ["arsinh pressure", "ln von Mises stress", "arsinh softest force constant", "relaxes"]
        return [f"{state} {name}" for state in ("clamped", "relaxed") for name in own] + rest
