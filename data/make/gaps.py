"""Band gaps that the model of any crystal predicts for the first hypothetical crystals: data/screening/gaps.csv.xz and
.json, eight minutes of one core.
"""

import time
from itertools import islice

import pandas as pd

from ecdlib.base.progress import tqdm
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import data_folder
from ecdlib.crystals.hypothetical import hypothetical_crystals
from ecdlib.learn.model_file import load_model
from ecdlib.learn.table import write_table

CRYSTALS = 20_000

if __name__ == "__main__":
    begun, model, parts = time.monotonic(), load_model("crystal"), []
    with tqdm(total=CRYSTALS, unit="crystal") as bar:
        candidates = hypothetical_crystals(CRYSTALS)
        while some := list(islice(candidates, 250)):
            gaps = model.predict([each.structure for each in some], ["band_gap"])["band_gap", "value"]
            parts.append(pd.DataFrame({"id": [each.id for each in some], "band_gap": gaps.to_numpy().round(3)}))
            bar.update(len(some))
    made_by = provenance("data/make/gaps.py", {"crystals": CRYSTALS}, time.monotonic() - begun)
    write_table(data_folder() / "screening" / "gaps.csv.xz", pd.concat(parts), {"provenance": made_by})
