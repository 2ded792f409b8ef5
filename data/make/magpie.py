"""Properties of the elements behind the MAGPIE features: data/composition/magpie.csv, out of matminer's tables.

    python data/make/magpie.py

The 22 properties of H to Pu are those of L. Ward and others, npj Comput. Mater. 2, 16028 (2016), as matminer has them;
it replaces missing ones by the mean over all elements (``impute_nan=True``).
"""

from __future__ import annotations

import pandas as pd
from matminer.featurizers.composition import ElementProperty
from matminer.utils.data import MagpieData
from pymatgen.core import Element

from ecdlib.base.errors import atomic_write
from ecdlib.base.resources import data_folder

HEAVIEST = 94  # Pu

if __name__ == "__main__":
    names, data = ElementProperty.from_preset("magpie", impute_nan=True).features, MagpieData(impute_nan=True)
    elements = [Element.from_Z(z) for z in range(1, HEAVIEST + 1)]
    rows = [[float(data.get_elemental_property(e, name)) for name in names] for e in elements]
    with atomic_write(data_folder() / "composition" / "magpie.csv") as temporary:
        pd.DataFrame(rows, index=pd.RangeIndex(1, HEAVIEST + 1, name="Z"), columns=names).to_csv(temporary)
