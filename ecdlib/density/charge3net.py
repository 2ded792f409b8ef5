"""Densities as VASP would give them, predicted from a structure by ChargE3Net as pydemi ships it (an optional extra).

ChargE3Net is an E(3)-equivariant network that predicts the density at any point from the atoms around it (T. Koker
et al., npj Comput. Mater. 10, 161 (2024), https://doi.org/10.1038/s41524-024-01343-1). pydemi's weights are fine-tuned
on VASP's densities of 6,059 crystals (PAW-PBE, 500 eV). Network and weights are under the MIT licence, and stay in
pydemi: ``pip install "ecdlib[charge3net]"``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Structure

from ecdlib.base.errors import EcdError
from ecdlib.density.cell import fast_length
from ecdlib.density.core import ChargeDensity, symmetry_dataset
from ecdlib.density.store import voxel_orbits

#: Spacing of voxels, Å: waves of a density whose orbitals are cut off at 500 eV end where this grid's do.
SPACING = 0.14
#: Convention of these densities.
CONVENTION = "vasp-pbe by ChargE3Net"
#: Packages of the extra ``charge3net``.
REQUIRES = ("pydemi", "torch", "e3nn", "ase")


def _pydemi() -> Any:
    missing = [m for m in REQUIRES if importlib.util.find_spec(m) is None]
    if missing:
        raise EcdError("charge3net", f"needs {', '.join(missing)}", 'pip install "ecdlib[charge3net]"')
    from pydemi import ml

    return ml


def potentials() -> Mapping[str, tuple[str, int]]:
    """Elements that the network knows: title of the POTCAR (``"PAW_PBE Fe 06Sep2000"``) and its valence electrons.

    Raises:
        EcdError: pydemi is not installed.
    """
    ml = _pydemi()
    return {element: (ml.POTCAR[element], round(electrons)) for element, electrons in ml.ZVAL.items()}


def predict_density(
    structure: Structure, spacing: float = SPACING, *, shape: Sequence[int] | None = None, name: str = "density"
) -> ChargeDensity:
    """VASP's density of a crystal as ChargE3Net predicts it.

    The network is invariant under the crystal's symmetry, so that it is evaluated at one voxel of each orbit only.

    Args:
        spacing: largest spacing of voxels, Å; cell vectors of one length get as many voxels.
        shape: voxels along each cell vector, instead of ``spacing``.
        name: see :class:`ecdlib.density.core.ChargeDensity`.

    Returns:
        The density, scaled to the valence electrons of :func:`potentials`.

    Raises:
        EcdError: pydemi is not installed, or an element that the network does not know.
    """
    ml = _pydemi()
    import torch
    from pydemi.io.base import Lattice
    from pydemi.io.base import Structure as Cell
    from pydemi.ml.graph import Replicas, atom_edges, probe_edges

    known = potentials()
    species = [site.specie.symbol for site in structure]
    if unknown := sorted(set(species) - set(known)):
        raise EcdError(
            name, f"ChargE3Net does not know {', '.join(unknown)}", "Compute the density (ecd density --with gpaw)."
        )
    lengths = np.linalg.norm(structure.lattice.matrix, axis=1)
    grid = [int(n) for n in shape] if shape else [fast_length(round(length / spacing, 3)) for length in lengths]
    found = symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), 1e-3)
    rotations, translations = (
        (np.eye(3, dtype=int)[None], np.zeros((1, 3))) if found is None else (found.rotations, found.translations)
    )
    orbit, first = voxel_orbits(rotations, translations, grid)
    points = np.stack(np.unravel_index(first, grid), axis=1) / grid @ structure.lattice.matrix

    model = ml.load()
    cell = Cell(Lattice(structure.lattice.matrix), species, structure.frac_coords)
    images = Replicas.build(cell, model.cutoff)
    values = np.empty(len(points))

    def tensor(x: Any, kind: Any = torch.float32) -> Any:
        return torch.as_tensor(x, dtype=kind, device=model.device)

    def edges(sources: Any, ends: Any, vectors: Any) -> tuple[Any, Any, Any]:
        return tensor(sources, torch.int64), tensor(ends, torch.int64), tensor(vectors)

    with torch.inference_mode():
        atoms = model.net.atom_model(
            tensor(structure.atomic_numbers, torch.int64), *edges(*atom_edges(images, cell, model.cutoff))
        )
        size = ml.chunk_size(cell, model.device)
        for start in range(0, len(points), size):
            chunk = points[start : start + size]
            near = edges(*probe_edges(images, chunk, model.cutoff))
            values[start : start + size] = model.net.probe_model(atoms, len(chunk), *near).cpu().numpy()
    electrons = sum(known[s][1] for s in species)
    values *= electrons / (values[orbit].mean() * structure.volume)
    return ChargeDensity(
        values[orbit].reshape(grid),
        structure.lattice.matrix,
        tuple(species),
        structure.frac_coords,
        name,
        CONVENTION,
        (f"predicted by ChargE3Net at {len(first)} of {orbit.size} voxels",),
        valence={e: known[e][1] for e in dict.fromkeys(species)},
        potentials={e: known[e][0] for e in dict.fromkeys(species)},
    )
