"""Principal components of the autocorrelations + Gaussian process regression: the classical baseline."""

from __future__ import annotations

from sklearn.decomposition import PCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from ecdlib.density.core import Floats


def _flat(X: Floats) -> Floats:
    return X.reshape(len(X), -1)


def pca_gpr(n_components: int = 25, seed: int = 0) -> Pipeline:
    """Unfitted scikit-learn pipeline: whitened PCA, Matérn-5/2 kernel with one length scale, noise fitted.

    Args:
        n_components: principal components kept; fitted on the training part only, as part of the pipeline.
        seed: of the randomized PCA solver.
    """
    kernel = ConstantKernel(10.0, (1e-2, 1e5)) * Matern(10.0, (1e-1, 1e4), nu=2.5) + WhiteKernel(1e-2, (1e-6, 1e1))
    return Pipeline(
        [
            ("channels", FunctionTransformer(_flat)),  # side by side
            ("pca", PCA(n_components, whiten=True, random_state=seed)),
            ("gpr", GaussianProcessRegressor(kernel, normalize_y=True)),
        ]
    )
