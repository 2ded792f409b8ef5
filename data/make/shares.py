"""Shares of the density in the SHAP values of both fused regressors: data/results/shares.csv.xz and .json, resumable.

python data/make/shares.py
"""

from ecdlib.base.resources import ROOT
from ecdlib.learn.shares import run_shares

if __name__ == "__main__":
    run_shares(ROOT / "data" / "results" / "shares.csv.xz")
