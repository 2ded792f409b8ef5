"""A printed table against its own equations: which numbers follow from the others to what rounding allows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy import constants

from ecdlib.elastic.moduli import PaperTable, elastic_quantities, load_paper_table

#: The paper's symbols of what :func:`ecdlib.elastic.moduli.elastic_quantities` computes.
SYMBOLS = {"v_l": "v_l", "v_t": "v_t", "v_s": "v_s", "nu": "poisson_ratio", "theta_D": "debye_temperature"}
INPUTS = ("B", "G", "M", "V")
UNIT = 1e27 * constants.atomic_mass  # u/Å³ in g/cm³


def follow(table: pd.DataFrame) -> pd.DataFrame:
    """What Eqs 1-5 (with h) give from the printed B, G, M, V and N, under the paper's symbols, and rho = M/V."""
    rho = UNIT * table["M"] / table["V"]
    q = elastic_quantities(table["B"], table["G"], rho, table["N"], table["V"])[list(SYMBOLS.values())]
    return q.set_axis(list(SYMBOLS), axis=1).assign(rho=rho)


@dataclass(frozen=True)
class PrintedTable:
    """Table A1 or A2 of the CGCNN paper, with what follows from its inputs and how exactly that is known.

    >>> a1 = PrintedTable.load("a1")
    >>> int(a1.follows("v_l", "v_l").sum()), int(a1.follows("v_t", "v_l").sum())  # the headings are exchanged
    (0, 20)
    """

    #: As printed; the first column is ``formula`` or ``id``.
    printed: pd.DataFrame
    #: Decimals of each printed number.
    decimals: pd.DataFrame
    #: :func:`follow` of what is printed.
    computed: pd.DataFrame
    #: The most that the rounding of B, G, M and V can do to each of ``computed``.
    slack: pd.DataFrame

    @classmethod
    def load(cls, which: PaperTable) -> PrintedTable:
        """Read one of the two tables; see :func:`ecdlib.elastic.moduli.load_paper_table`."""
        names = {"Formula": "formula", "Filename": "formula", "ID-number": "id"}
        printed = load_paper_table(which).rename(columns=names)
        words = (
            load_paper_table(which, text=True).rename(columns=names).drop(columns=["formula", "id"], errors="ignore")
        )
        decimals = words.map(lambda number: len(number.partition(".")[2]))
        computed = follow(printed)
        slack = 0 * computed
        for signs in product((-1, 1), repeat=len(INPUTS)):
            corner = {c: printed[c] + s * 0.5 * 10.0 ** -decimals[c] for c, s in zip(INPUTS, signs, strict=True)}
            slack = pd.DataFrame(np.maximum(slack, (follow(printed.assign(**corner)) - computed).abs()))
        return cls(printed, decimals, computed, slack)

    def follows(self, column: str, quantity: str, factor: float | pd.Series = 1.0) -> pd.Series:
        """Rows whose printed ``column`` agrees with a computed quantity (times a factor) to what rounding allows."""
        gap = (self.printed[column] - factor * self.computed[quantity]).abs()
        allowed: pd.Series = factor * self.slack[quantity] + 0.5 * 10.0 ** -self.decimals[column]
        return gap <= allowed + 1e-9
