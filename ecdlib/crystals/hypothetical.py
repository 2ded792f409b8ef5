"""Hypothetical crystals: known prototypes, decorated with elements that are chemically close, at an estimated volume.

They stand in for the crystals of a large screening where databases cannot be reached. None of them is in the bundled
data, some may be known elsewhere; none was relaxed, and whether one of them is stable is not asked here.

- A *parent* is a bundled crystal of two or more elements and at most :data:`MAX_ATOMS` atoms whose space group at
  :data:`SYMPREC` is the one that the Materials Project lists (0.1 Å): its symmetry does not hang on the tolerance.
- A *prototype* is space group, anonymous formula and Wyckoff letters of each element, ``ABC2_225_a_b_c``.
- A *decoration* replaces one or more elements of a parent. An element may be replaced by one whose Mendeleev number
  (D. G. Pettifor's order of the elements, as in pymatgen) differs by at most :data:`REACH` and which takes at most
  :data:`SIZE_RATIO` times the volume, or that part of it: the order puts neighbours in a column next to each other, and
  the ends of columns, too (B and Bi). Noble gases and radioactive elements are out, all elements of a crystal differ,
  and :func:`bonding` must hold.
- What has the formula and space group of a known crystal, or of a decoration that came before, is left out. So there is
  one hypothetical crystal for each formula and space group, even if a formula fits a prototype in several ways.
- Every parent gives one decoration in turn, drawn at random, until enough are there: prototypes are as frequent as
  among the known crystals, as long as their parents have decorations left. Those with few elements run out first.
- The cell of the parent is scaled, its shape and coordinates are kept (:class:`VolumeModel`).
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pymatgen.core import Composition, Element, Lattice, Structure

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file, read_once
from ecdlib.crystals.candidate import RADIOACTIVE, Candidate
from ecdlib.data.tables import load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.core import symmetry

if TYPE_CHECKING:
    from ecdlib.crystals.sources import Options

MAX_ATOMS = 40  #: atoms in a parent's cell
REACH = 3  #: largest difference of Mendeleev numbers between an element and what replaces it
SIZE_RATIO = 2.0  #: largest ratio of the volumes that an element and what replaces it take (see VolumeModel)
RIDGE = 0.1  #: of the volume model

#: Metalloids that form intermetallics with metals as metals do; As, Sb and Te must fit as anions.
METALLOIDS = frozenset({"B", "Si", "Ge"})

#: Elements that a decoration may use.
ELEMENTS = tuple(
    e.symbol for e in (Element.from_Z(z) for z in range(1, 84)) if not e.is_noble_gas and e.symbol not in RADIOACTIVE
)

Formula = tuple[tuple[str, int], ...]  #: elements, sorted, and their numbers without common factor


def _formula(amounts: Mapping[str, float]) -> Formula:
    whole = {symbol: round(amount) for symbol, amount in amounts.items()}
    factor = math.gcd(*whole.values())
    return tuple(sorted((symbol, amount // factor) for symbol, amount in whole.items()))


@lru_cache(maxsize=200_000)
def bonding(formula: Formula) -> str:
    """``"intermetallic"``, ``"charge-neutral"``, or empty for what is neither.

    Intermetallic: metals, or metals with B, Si or Ge. Charge-neutral: with one common oxidation state for each element
    the charges add up to zero; those of metals are positive, those of the most electronegative element negative.

    >>> bonding((("Cl", 1), ("Na", 1))), bonding((("Al", 1), ("Ni", 1))), bonding((("Cl", 2), ("Na", 1)))
    ('charge-neutral', 'intermetallic', '')
    """
    elements = [Element(symbol) for symbol, _ in formula]
    metals = [e.is_metal for e in elements]
    if any(metals) and all(m or e.symbol in METALLOIDS for e, m in zip(elements, metals, strict=True)):
        return "intermetallic"
    anion = max(elements, key=lambda e: e.X)
    states = [
        [q for q in e.common_oxidation_states if q and (q > 0 or not metal) and (q < 0 or e != anion)]
        for e, metal in zip(elements, metals, strict=True)
    ]
    numbers = [number for _, number in formula]
    totals = (sum(q * n for q, n in zip(charges, numbers, strict=True)) for charges in itertools.product(*states))
    return "charge-neutral" if 0 in totals else ""


# Prototypes


def prototype(structure: Structure) -> str:
    """Prototype of a crystal, ``<anonymous formula>_<space group>_<Wyckoff letters of each element>``.

    Elements come in the order of their number of atoms, then letters; a letter that stands for several orbits has
    their number before it. Empty if no symmetry is found. Where a space group allows several origins (such as that of
    half-Heuslers), the letters are those of the origin at hand, so that one prototype may have several names.

    >>> prototype(Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    'AB_221_a_b'
    """
    return described(structure)[0]


def described(structure: Structure) -> tuple[str, int]:
    """Prototype of a crystal (see :func:`prototype`) and atoms in its primitive cell; 0 if no symmetry is found."""
    numbers = list(structure.atomic_numbers)
    found = symmetry(structure)
    if found is None:
        return "", 0
    orbits: dict[int, dict[int, str]] = defaultdict(dict)
    for number, letter, orbit in zip(numbers, found.wyckoffs, found.crystallographic_orbits, strict=True):
        orbits[number][int(orbit)] = letter
    letters = {
        number: "".join(f"{n if n > 1 else ''}{letter}" for letter, n in sorted(Counter(each.values()).items()))
        for number, each in orbits.items()
    }
    amounts = Counter(numbers)
    factor = math.gcd(*amounts.values())
    order = sorted((amounts[number] // factor, letters[number]) for number in amounts)
    anonymous = "".join(f"{name}{n if n > 1 else ''}" for name, (n, _) in zip(ascii_uppercase, order, strict=False))
    label = "_".join([anonymous, str(found.number), *(each for _, each in order)])
    return label, len(set(found.mapping_to_primitive))


@read_once
def bundled_prototypes() -> pd.DataFrame:
    """What :func:`described` says of each bundled crystal, by name: prototype, primitive (atoms in that cell).

    The table is made by ``data/make/prototypes.py``: to find all symmetries takes a minute or two.
    """
    return pd.read_csv(data_file("screening/prototypes.csv.xz"), index_col="name", keep_default_na=False)


@read_once
def bundled_gaps() -> pd.Series:
    """Band gaps (eV) that the model of any crystal predicts for the first hypothetical crystals of seed 0, by their id.

    The table is made by ``data/make/gaps.py``.
    """
    return pd.read_csv(data_file("screening/gaps.csv.xz"), index_col="id")["band_gap"]


def _listed_spacegroups() -> dict[str, int]:
    matbench = load_matbench_elasticity().dropna(subset=["structure"])
    return (
        dict(zip(matbench["structure"], matbench["spacegroup"], strict=True)) | load_crystals()["spacegroup"].to_dict()
    )


@read_once
def known_crystals() -> pd.DataFrame:
    """The bundled crystals of two or more elements, indexed by name.

    Columns: prototype, spacegroup (of the prototype), formula (:data:`Formula`), n_atoms, volume (Å³ per atom),
    parent (may be decorated).
    """
    structures = load_structures()
    table = pd.DataFrame(
        {
            "prototype": bundled_prototypes()["prototype"].reindex(list(structures)).to_numpy(),
            "formula": [_formula(s.composition.get_el_amt_dict()) for s in structures.values()],
            "n_atoms": [len(s) for s in structures.values()],
            "volume": [s.volume / len(s) for s in structures.values()],
        },
        index=list(structures),
    )
    table = table[(table["prototype"] != "") & (table["formula"].map(len) > 1)]
    table["spacegroup"] = table["prototype"].str.split("_").str[1].astype(int)
    listed = table.index.to_series().map(_listed_spacegroups())
    table["parent"] = (listed == table["spacegroup"]) & (table["n_atoms"] <= MAX_ATOMS)
    return table


@read_once
def known_formulas() -> frozenset[tuple[Formula, int]]:
    """Formula and space group of every crystal in the bundled data, 10,987 entries of Matbench included."""
    known = known_crystals()
    tables = [load_crystals(), load_matbench_elasticity()]
    pairs = itertools.chain.from_iterable(zip(t["formula"], t["spacegroup"], strict=True) for t in tables)
    found = {(_formula(Composition(formula).get_el_amt_dict()), int(group)) for formula, group in pairs}
    return frozenset(found | set(zip(known["formula"], known["spacegroup"], strict=True)))


# Volume


@dataclass(frozen=True)
class VolumeModel:
    """Volumes of crystals of one prototype: ``log(V / atoms) = a(prototype) + Σ x_e w_e``, x_e the atomic fractions.

    A ridge regression within prototypes: only differences between crystals of one prototype count. From a parent to
    its decoration the prototype's part cancels, and a volume changes by ``exp(Σ (x_e' - x_e) w_e)``.
    """

    weights: Mapping[str, float]  #: w_e of each element

    @classmethod
    def fit(cls, known: pd.DataFrame) -> VolumeModel:
        """Fit the weights to crystals as :func:`known_crystals` lists them."""
        columns = sorted({symbol for formula in known["formula"] for symbol, _ in formula})
        where = {symbol: i for i, symbol in enumerate(columns)}
        values = np.zeros((len(known), len(columns) + 1))
        for row, formula in zip(values, known["formula"], strict=True):
            for symbol, amount in formula:
                row[where[symbol]] = amount
        values /= values.sum(1, keepdims=True)
        values[:, -1] = np.log(known["volume"])
        table = pd.DataFrame(values, index=known.index)
        within = (table - table.groupby(known["prototype"]).transform("mean")).to_numpy()
        design, target = within[:, :-1], within[:, -1]
        weights = np.linalg.solve(design.T @ design + RIDGE * np.eye(len(columns)), design.T @ target)
        return cls(dict(zip(columns, weights.tolist(), strict=True)))

    def scale(self, parent: Formula, decorated: Formula) -> float:
        """Volume of a decoration over the volume of its parent."""
        return math.exp(self._mean(decorated) - self._mean(parent))

    def _mean(self, formula: Formula) -> float:
        atoms = sum(amount for _, amount in formula)
        return sum(amount * self.weights.get(symbol, 0.0) for symbol, amount in formula) / atoms


@read_once
def volume_model() -> VolumeModel:
    """The model of all known crystals."""
    return VolumeModel.fit(known_crystals())


def volume_error(n: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """How well volumes of known crystals are predicted from other known crystals of their prototype.

    Crystals are drawn at random; each is predicted from one of those that could be its parent (its elements may be
    replaced by those of the crystal), drawn at random, too. The model is fitted without the tenth of the crystals to
    which the predicted one belongs (which crystals may be parents was decided with all). Peers: pymatgen's reference
    lattice scaling (``RLS``, from atomic radii) and data-mined lattice scaling (``DLS``, from tabulated bond lengths;
    I.-H. Chu et al., Comput. Mater. Sci. 146, 184, 2018), and the volume of the parent unchanged.

    Returns:
        For ``"ours"``, ``"RLS"``, ``"DLS"``, ``"parent"``: ``n`` (pairs), ``median`` and ``q90`` (90 % quantile) of
        ``|V_predicted / V - 1|``.
    """
    from pymatgen.analysis.structure_prediction.volume_predictor import DLSVolumePredictor, RLSVolumePredictor

    known, structures = known_crystals(), load_structures()
    formulas = known["formula"].to_dict()
    rng = np.random.default_rng(seed)
    fold = pd.Series(rng.permutation(len(known)) % 10, index=known.index)
    models = [VolumeModel.fit(known[fold != i]) for i in range(10)]
    same = known.groupby("prototype").groups
    rls, dls = RLSVolumePredictor(check_isostructural=False, radii_type="atomic"), DLSVolumePredictor()
    errors: dict[str, list[float]] = {"ours": [], "RLS": [], "DLS": [], "parent": []}
    for name in rng.permutation(known.index.to_numpy(str)):
        target = known.loc[name]
        pairs = [(other, _replacement(formulas[other], formulas[name])) for other in same[target["prototype"]]]
        pairs = [(other, swap) for other, swap in pairs if swap and other != name]
        if not pairs:
            continue
        other, swap = pairs[rng.integers(len(pairs))]
        parent = known.loc[other]
        decorated = _decorate(structures[other], swap, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' remarks on elements that they do not know
            volumes = {
                "ours": parent["volume"] * models[fold[name]].scale(parent["formula"], target["formula"]),
                "RLS": rls.predict(decorated, structures[other]) / len(decorated),
                "DLS": dls.predict(decorated) / len(decorated),
                "parent": parent["volume"],
            }
        for method, volume in volumes.items():
            errors[method].append(abs(volume / target["volume"] - 1))
        if len(errors["ours"]) == n:
            break
    return {
        method: {"n": len(each), "median": float(np.median(each)), "q90": float(np.quantile(each, 0.9))}
        for method, each in errors.items()
    }


def _replacement(parent: Formula, target: Formula) -> dict[str, str]:
    """Elements of a parent and what replaces them in another crystal of its prototype; empty if out of reach."""
    for order in itertools.permutations(target):
        if all(a[1] == b[1] and b[0] in _choices(a[0]) for a, b in zip(parent, order, strict=True)):
            return {a[0]: b[0] for a, b in zip(parent, order, strict=True)}
    return {}


# Decorations


@lru_cache(maxsize=200)
def _choices(symbol: str) -> tuple[str, ...]:
    """What may stand for an element, itself included if it is not radioactive."""
    number, sizes = Element(symbol).mendeleev_no, volume_model().weights
    return tuple(
        each
        for each in ELEMENTS
        if abs(Element(each).mendeleev_no - number) <= REACH
        and abs(sizes[each] - sizes[symbol]) <= math.log(SIZE_RATIO)
    )


def _decorate(parent: Structure, replaced: Mapping[str, str], scale: float) -> Structure:
    symbols = [site.specie.symbol for site in parent]
    lattice = Lattice(parent.lattice.matrix * scale ** (1 / 3))
    return Structure(lattice, [replaced.get(symbol, symbol) for symbol in symbols], parent.frac_coords)


def _decorations(
    parent: Formula, spacegroup: int, seen: set[tuple[Formula, int]], seed: list[int]
) -> Iterator[Formula]:
    """Decorations of a parent in random order, elements in the places of those that they replace; ``seen`` grows."""
    choices = [_choices(symbol) for symbol, _ in parent]
    shape = [len(each) for each in choices]
    for number in np.random.default_rng(seed).permutation(math.prod(shape)):
        symbols = [each[i] for each, i in zip(choices, np.unravel_index(number, shape), strict=True)]
        if len(set(symbols)) < len(symbols):
            continue
        decorated = tuple((symbol, amount) for symbol, (_, amount) in zip(symbols, parent, strict=True))
        key = (tuple(sorted(decorated)), spacegroup)
        if key not in seen and bonding(key[0]):
            seen.add(key)
            yield decorated


def plan(n: int = 80_000, seed: int = 0) -> pd.DataFrame:
    """The first ``n`` hypothetical crystals of a seed, without their structures; a smaller ``n`` gives the same first.

    Any rows of it can be built on their own (:func:`build`, :func:`candidates`), in any order and process.

    Returns:
        Columns: id (``hyp-0000123``), parent (name in :func:`ecdlib.data.tables.load_structures`), prototype, replaced
        (``"Na>K Cl>Br"``), formula (reduced), spacegroup, n_atoms (of the parent's cell), volume_scale (volume over the
        parent's).

    Raises:
        EcdError: ``n`` is not positive, or more than there are within the rules.
    """
    if n < 1:
        raise EcdError("hypothetical", f"{n} crystals cannot be made", "Ask for at least one.")
    known, seen = known_crystals(), set(known_formulas())
    parents = known[known["parent"]]
    order = np.random.default_rng(seed).permutation(len(parents))
    names, formulas = parents.index.to_numpy(str), parents["formula"].to_list()
    groups = parents["spacegroup"].to_list()
    active = {i: _decorations(formulas[i], groups[i], seen, [seed, i]) for i in order.tolist()}
    found: list[tuple[int, Formula]] = []
    while active and len(found) < n:
        for i, decorations in list(active.items()):
            if len(found) == n:
                break
            if (decorated := next(decorations, None)) is None:
                del active[i]
            else:
                found.append((i, decorated))
    if len(found) < n:
        raise EcdError("hypothetical", f"only {len(found)} crystals exist within the rules", "Ask for fewer.")
    model = volume_model()
    chosen = parents.iloc[[i for i, _ in found]]
    rows = [(formulas[i], decorated) for i, decorated in found]
    return pd.DataFrame(
        {
            "id": [f"hyp-{i:07d}" for i in range(n)],
            "parent": names[[i for i, _ in found]],
            "prototype": chosen["prototype"].to_numpy(),
            "replaced": [
                " ".join(f"{a}>{b}" for (a, _), (b, _) in zip(old, new, strict=True) if a != b) for old, new in rows
            ],
            "formula": [Composition(dict(new)).reduced_formula for _, new in rows],
            "spacegroup": chosen["spacegroup"].to_numpy(),
            "n_atoms": chosen["n_atoms"].to_numpy(),
            "volume_scale": [model.scale(old, new) for old, new in rows],
        }
    )


def build(row: Any) -> Structure:
    """The crystal of one row of :func:`plan` (a row of ``itertuples()`` or a Series)."""
    replaced = dict(pair.split(">") for pair in row.replaced.split())
    return _decorate(load_structures()[row.parent], replaced, row.volume_scale)


def candidates(rows: pd.DataFrame) -> Iterator[Candidate]:
    """The crystals of rows of :func:`plan`, built one by one."""
    for row in rows.itertuples():
        info = {"hypothetical": True, "prototype": row.prototype, "parent": row.parent}
        yield Candidate(str(row.id), build(row), "hypothetical", info)


def hypothetical_crystals(n: int = 80_000, seed: int = 0) -> Iterator[Candidate]:
    """The crystals of :func:`plan`, built one by one.

    Raises:
        EcdError: see :func:`plan`; at once, not at the first crystal.
    """
    return candidates(plan(n, seed))


def read_hypothetical(source: str, options: Options) -> Iterator[Candidate]:
    """The crystals of ``hypothetical``, ``hypothetical:N`` or ``hypothetical:N:SEED``.

    Raises:
        EcdError: another text; see also :func:`plan`.
    """
    match = re.fullmatch(r"hypothetical(?::(\d{1,9}))?(?::(\d{1,9}))?", source)
    if match is None:
        raise EcdError(source, "cannot be parsed", "Write hypothetical, hypothetical:N or hypothetical:N:SEED.")
    return hypothetical_crystals(**{key: int(v) for key, v in zip(("n", "seed"), match.groups(), strict=True) if v})
