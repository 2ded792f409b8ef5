"""Ask the models of any crystal about crystals that they have not seen: data/results/NAME.csv (or .csv.xz) and .json.

    python data/make/splits.py pydemi       pydemi_split: its 606 test crystals, all properties
    python data/make/splits.py published    published_split: LatentMatFusion's test crystals, its properties
    python data/make/splits.py 5-fold       five_fold: all 6,059 crystals, five folds
    python data/make/splits.py cubic-892    cubic_892: the 892 cubic crystals, ten folds, twice
    python data/make/splits.py matbench     matbench_folds: Matbench's official folds, log10 K and log10 G
    python data/make/splits.py held-out     held_out: the book's final test, once
    python data/make/splits.py elements     unseen_elements: each element's crystals left out
    python data/make/splits.py clusters     clusters: whole prototypes and pairs of elements left out
    python data/make/splits.py new          new_crystals: crystals that no list holds (needs the extra "potential")
    python data/make/splits.py new-known    new_crystals_known: the same, most of them among the training crystals

Minutes to an hour of one core each; all but elements, clusters, new and new-known resume.
"""

import sys
import time

import pandas as pd

from ecdlib.base.provenance import provenance
from ecdlib.base.resources import ROOT
from ecdlib.learn.any_crystal import matbench, run_split
from ecdlib.learn.held_out import run_held_out, without_cluster, without_element
from ecdlib.learn.new_crystals import run_among_themselves, run_new_crystals
from ecdlib.learn.table import write_table

RESULTS = ROOT / "data" / "results"
#: What LatentMatFusion's Table 1 has; Young's modulus and Debye temperature follow.
PUBLISHED = ("bulk_modulus", "shear_modulus", "cohesive_energy")

if __name__ == "__main__":
    which = sys.argv[1]
    if which == "pydemi":
        run_split(RESULTS / "pydemi_split.csv.xz")
    elif which == "published":
        run_split(RESULTS / "published_split.csv.xz", "published", PUBLISHED)
    elif which == "5-fold":
        run_split(RESULTS / "five_fold.csv.xz", "5-fold", PUBLISHED[:2], (*PUBLISHED[:2], "debye_temperature"))
    elif which == "cubic-892":
        run_split(RESULTS / "cubic_892.csv.xz", "cubic-892", ("bulk_modulus", "total_energy"))
    elif which == "matbench":
        matbench(RESULTS / "matbench_folds.csv.xz")
    elif which == "held-out":
        run_held_out(RESULTS / "held_out.csv")
    elif which == "elements":
        begun = time.time()
        tables = {t: without_element(t) for t in ("bulk_modulus", "shear_modulus", "formation_energy")}
        table = pd.concat(tables, names=["property", "element"]).reset_index()
        note = {"provenance": provenance("data/make/splits.py", {}, time.time() - begun)}
        write_table(RESULTS / "unseen_elements.csv", table, note)
    elif which == "clusters":
        begun = time.time()
        table = without_cluster("bulk_modulus")
        note = {"provenance": provenance("data/make/splits.py", {}, time.time() - begun)}
        write_table(RESULTS / "clusters.csv.xz", table, note)
    elif which == "new":
        run_new_crystals(RESULTS / "new_crystals.csv")
    elif which == "new-known":
        run_among_themselves(RESULTS / "new_crystals_known.csv")
    else:
        sys.exit(__doc__)
