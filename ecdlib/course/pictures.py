"""Pictures of concepts for the slides, each computed from the bundled data or from the definition itself."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from ecdlib.book import plotting
from ecdlib.book.artifacts import PAPERS, SIGMAS, Tolerance, load_artifacts, mean_with_error, paired
from ecdlib.book.plotting import BLUE, GREY, RED
from ecdlib.course.data import course_crystals, course_features
from ecdlib.density.cell import resample
from ecdlib.density.core import Floats
from ecdlib.density.store import load_density
from ecdlib.elastic.strain import cubic_constants, load_strains, strain_energies, voigt_reuss_hill
from ecdlib.features.autocorrelation import cubic_orbits
from ecdlib.learn.protocol import cross_validate, fold_numbers, folds_of
from ecdlib.models.lean_cnn import ARCHITECTURES

#: All pictures by name.
PICTURES: dict[str, Callable[[], Figure]] = {}


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Add a function to :data:`PICTURES` under its name."""
    PICTURES[draw.__name__] = draw
    return draw


@cache
def svg(name: str) -> str:
    """A picture as vector graphics, ready for the ``src`` of an image.

    Raises:
        KeyError: no picture of that name.
    """
    with mpl.rc_context():
        plotting.style()
        figure = PICTURES[name]()
        figure.tight_layout()
        drawn = plotting.svg(figure)
        plt.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"


def _panels(columns: int = 1, width: float = 7.2, height: float = 3.2, sharey: bool = False) -> tuple[Figure, Any]:
    """A figure and its panels, side by side."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, sharey=sharey)
    return figure, axes[0]


def _scores_on_components() -> tuple[Floats, Floats, Floats]:
    """Principal components of the course's crystals: scores ``(n, k)``, shares of the variance, bulk moduli."""
    X = course_features()
    left, size, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
    return left * size, size**2 / (size**2).sum(), course_crystals()["bulk_modulus"].to_numpy()


def _mean_density() -> tuple[Floats, Floats]:
    """Mean density (e/Å³) and bulk modulus (GPa) of the course's crystals."""
    crystals = course_crystals()
    return (crystals["n_electrons"] / crystals["volume"]).to_numpy(), crystals["bulk_modulus"].to_numpy()


# Session 1


@picture
def electrons_around_atoms() -> Figure:
    """NaCl: the electrons within a distance of each nucleus."""
    density = load_density("NaCl_225")
    grid = np.stack(np.meshgrid(*(np.arange(n) / n for n in density.shape), indexing="ij"), -1).reshape(-1, 3)
    figure, (ax,) = _panels()
    for (symbol, place), colour in zip(zip(density.species, density.positions, strict=True), (BLUE, RED), strict=False):
        offset = grid - place
        nearest = offset - np.round(offset)
        images = np.stack([nearest + np.array(s) - 1 for s in np.ndindex(3, 3, 3)]) @ density.lattice
        distance = np.linalg.norm(images, axis=-1).min(0)
        order = np.argsort(distance)
        held = np.cumsum(density.values.ravel()[order]) * density.voxel_volume
        ax.plot(distance[order], held, color=colour, label=symbol)
    ax.axhline(density.n_electrons, color=GREY, ls=":")
    ax.annotate("all valence electrons of the cell", (0.05, density.n_electrons), va="bottom", color=GREY)
    ax.set(xlabel="distance from the nucleus (Å)", ylabel="electrons within it", xlim=(0, 2.6))
    ax.legend()
    return figure


@picture
def two_cells() -> Figure:
    """Conventional and primitive cell of a face-centred square lattice: two descriptions of one crystal."""
    figure, (ax,) = _panels(width=5.4, height=3.4)
    x, y = np.indices((7, 5)).reshape(2, -1) / 2
    on = (2 * x + 2 * y) % 2 == 0
    ax.plot(x[on], y[on], "o", color=GREY, ms=9)
    ax.add_patch(Rectangle((0, 0), 1, 1, facecolor=BLUE, alpha=0.25, edgecolor=BLUE))
    ax.add_patch(Polygon([(2, 0.5), (2.5, 0), (3, 0.5), (2.5, 1)], facecolor=RED, alpha=0.25, edgecolor=RED))
    areas = [abs(np.linalg.det([[1, 0], [0, 1]])), abs(np.linalg.det([[0.5, -0.5], [0.5, 0.5]]))]
    ax.text(0.5, 1.12, f"conventional: area {areas[0]:g} a²", ha="center", color=BLUE)
    ax.text(2.5, 1.12, f"primitive: area {areas[1]:g} a²", ha="center", color=RED)
    ax.set(aspect="equal", xlim=(-0.3, 3.3), ylim=(-0.3, 2.2))
    ax.axis("off")
    return figure


@picture
def plane_waves() -> Figure:
    """A line through a density: coarse values, joined by straight lines and by plane waves."""
    line = load_density("NaCl_225").values[:, 0, 0].astype(float)
    n = 10
    coarse = resample(line[:, None, None], (n, 1, 1))[:, 0, 0]
    fine = resample(coarse[:, None, None], (400, 1, 1))[:, 0, 0]
    figure, (ax,) = _panels()
    places = np.append(np.arange(n) / n, 1)
    ax.plot(places, np.append(coarse, coarse[0]), color=RED, label="straight lines")
    ax.plot(np.arange(400) / 400, fine, color=BLUE, label="plane waves")
    ax.plot(places, np.append(coarse, coarse[0]), "o", color="black", ms=4, label="values on the coarse grid")
    ax.set(xlabel="place along the first cell vector", ylabel="density (e/Å³)")
    ax.legend()
    return figure


def _profile() -> Floats:
    """Square root of a density along a line, smooth and positive."""
    values = load_density("NaCl_225").values.mean((1, 2)).astype(float)
    return np.asarray(np.sqrt(np.tile(values, 2)))


@picture
def autocorrelation_two_ways() -> Figure:
    """An autocorrelation in one dimension, by the Fourier transform and by the sum over pairs."""
    field = _profile()
    n = len(field)
    fast = np.fft.ifft(np.abs(np.fft.fft(field)) ** 2).real / n
    direct = [float((field * np.roll(field, -r)).mean()) for r in range(n)]
    figure, axes = _panels(2, width=8.6, height=3)
    axes[0].plot(np.arange(n) / n, field, color=GREY)
    axes[0].set(xlabel="place", title="square root of a density")
    axes[1].plot(np.arange(n) / n, fast, color=BLUE, label="by Fourier transform")
    axes[1].plot(np.arange(0, n, 3) / n, direct[::3], "o", color=RED, ms=4, label="by summing over pairs")
    axes[1].set(xlabel="vector r", title="its autocorrelation")
    axes[1].legend(loc="upper center")
    return figure


@picture
def shifted_origin() -> Figure:
    """Two origins, two arrays, one autocorrelation."""
    field = _profile()
    n = len(field)
    moved = np.roll(field, n // 5)
    figure, axes = _panels(2, width=8.6, height=3)
    for values, colour, kind in ((field, BLUE, "-"), (moved, RED, "--")):
        axes[0].plot(np.arange(n) / n, values, color=colour, ls=kind)
        spectrum = np.abs(np.fft.fft(values)) ** 2
        axes[1].plot(np.arange(n) / n, np.fft.ifft(spectrum).real / n, color=colour, ls=kind)
    axes[0].set(xlabel="place", title="one crystal, two origins")
    axes[1].set(xlabel="vector r", title="both autocorrelations")
    return figure


@picture
def same_autocorrelation() -> Figure:
    """Two different arrangements of points with the same distances: a homometric pair."""
    sets = ([0, 1, 4, 10, 12, 17], [0, 1, 8, 11, 13, 17])
    figure, axes = _panels(2, width=8.6, height=2.8)
    for row, (points, colour) in enumerate(zip(sets, (BLUE, RED), strict=True)):
        axes[0].plot(points, [-row] * len(points), "o", color=colour, ms=9)
        apart = np.subtract.outer(points, points)
        counts = np.bincount(apart[apart > 0], minlength=18)
        axes[1].bar(np.arange(18) + 0.4 * row - 0.2, counts, 0.4, color=colour)
    axes[0].set(ylim=(-1.6, 0.6), xlabel="place", title="two arrangements", yticks=[])
    axes[1].set(xlabel="distance", title="pairs at each distance", yticks=[0, 1, 2])
    return figure


# Session 2


@picture
def spread_of_the_target() -> Figure:
    """Bulk moduli with their mean: the error of a model that knows nothing else."""
    values = course_crystals()["bulk_modulus"]
    figure, (ax,) = _panels()
    ax.hist(values, 24, color=GREY, alpha=0.7)
    ax.axvline(values.mean(), color=RED)
    error = (values - values.mean()).abs().mean()
    ax.annotate(
        f"mean; its MAE is {error:.0f} GPa",
        (values.mean(), ax.get_ylim()[1] * 0.93),
        color=RED,
        xytext=(6, 0),
        textcoords="offset points",
    )
    ax.set(xlabel="bulk modulus (GPa)", ylabel="crystals of the course")
    return figure


@picture
def two_components() -> Figure:
    """Two values of the autocorrelation, and the directions in which the crystals differ."""
    X = course_features()
    pair = X[:, [0, int(np.argsort(X.var(0))[len(X[0]) // 2])]]
    centred = pair - pair.mean(0)
    _, size, directions = np.linalg.svd(centred, full_matrices=False)
    figure, (ax,) = _panels(width=5.6, height=3.6)
    ax.scatter(*centred.T, s=10, color=GREY, lw=0)
    for length, direction, colour in zip(2 * size / np.sqrt(len(X)), directions, (BLUE, RED), strict=True):
        ax.annotate("", direction * length, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
    share = 100 * size**2 / (size**2).sum()
    ax.set(
        title=f"variance along blue {share[0]:.1f} %, along red {share[1]:.1f} %",
        aspect="equal",
        xlabel="f(0) less its mean (e/Å³)",
        ylabel="f at one vector less its mean",
    )
    return figure


@picture
def variance_and_use() -> Figure:
    """For each component, its share of the variance and its correlation with the target."""
    scores, share, y = _scores_on_components()
    n = 15
    use = [abs(np.corrcoef(scores[:, k], y)[0, 1]) for k in range(n)]
    figure, axes = _panels(2, width=8.6, height=3)
    axes[0].bar(np.arange(1, n + 1), share[:n], color=GREY)
    axes[0].set(yscale="log", xlabel="component", title="share of the variance")
    axes[1].bar(np.arange(1, n + 1), use, color=BLUE)
    axes[1].set(xlabel="component", title="correlation with the bulk modulus (magnitude)")
    for ax in axes:
        ax.set_xticks(range(1, n + 1, 2))
    return figure


@picture
def length_scales() -> Figure:
    """One Gaussian process with three lengths; the marginal likelihood chooses between them."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    x, y = _mean_density()
    few = np.random.default_rng(1).choice(len(x), 30, replace=False)
    x, y = (x / x.std())[few, None], (y - y.mean())[few] / y.std()
    line = np.linspace(x.min() - 0.4, x.max() + 0.4, 200)[:, None]
    figure, axes = _panels(3, width=9.4, height=3, sharey=True)
    for ax, length in zip(axes, (0.08, 0.8, 20.0), strict=True):
        model = GaussianProcessRegressor(RBF(length, "fixed") + WhiteKernel(0.3, "fixed"), optimizer=None).fit(x, y)
        centre, spread = model.predict(line, return_std=True)
        ax.fill_between(line[:, 0], centre - 2 * spread, centre + 2 * spread, color=BLUE, alpha=0.2, lw=0)
        ax.plot(line, centre, color=BLUE)
        ax.plot(x, y, "o", color=RED, ms=4)
        ax.set(title=f"length {length:g}: log p = {model.log_marginal_likelihood_value_:.1f}", xlabel="mean density")
    axes[0].set_ylabel("bulk modulus")
    return figure


@picture
def folds() -> Figure:
    """Five folds of forty crystals: each crystal tests once."""
    number = fold_numbers(40, 5, 0)
    figure, (ax,) = _panels(height=2.6)
    for k in range(5):
        for i, own in enumerate(number):
            ax.add_patch(
                Rectangle((i, -k), 0.9, 0.8, facecolor=RED if own == k else BLUE, alpha=0.8 if own == k else 0.3)
            )
    ax.set(
        xlim=(-0.5, 40.5),
        ylim=(-4.4, 1.2),
        xlabel="crystals (red tests, blue trains)",
        yticks=[0.4 - k for k in range(5)],
    )
    ax.set_yticklabels([f"fit {k + 1}" for k in range(5)])
    ax.set_xticks([])
    return figure


@picture
def leak() -> Figure:
    """Random features, the best of them chosen before and within the folds: an error that is too small."""
    from sklearn.feature_selection import SelectKBest, f_regression
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    y = course_crystals()["bulk_modulus"].to_numpy()
    noise = np.random.default_rng(0).normal(size=(len(y), 5000))
    chosen = SelectKBest(f_regression, k=10).fit_transform(noise, y)
    ways = {
        "chosen with all crystals": cross_validate(LinearRegression, chosen, y, progress=False),
        "chosen within each fold": cross_validate(
            lambda: make_pipeline(SelectKBest(f_regression, k=10), LinearRegression()), noise, y, progress=False
        ),
    }
    figure, axes = _panels(2, width=8.2, height=3.3, sharey=True)
    for ax, (name, rows) in zip(axes, ways.items(), strict=True):
        ax.plot(rows["truth"], rows["prediction"], "o", color=BLUE, ms=4, alpha=0.6)
        ax.plot([0, 370], [0, 370], color=GREY, lw=1)
        error = (rows["prediction"] - rows["truth"]).abs().mean()
        ax.set(title=f"{name}: MAE {error:.0f} GPa", xlabel="bulk modulus (GPa)")
    axes[0].set_ylabel("predicted from noise (GPa)")
    return figure


@picture
def paired_difference() -> Figure:
    """Two models on the same crystals: errors overlap, their differences decide."""
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import PolynomialFeatures

    x, y = _mean_density()
    errors = []
    for degree in (1, 2):
        features = PolynomialFeatures(degree, include_bias=False).fit_transform(x[:, None])  # nothing is fitted
        rows = cross_validate(LinearRegression, features, y, progress=False)
        errors.append((rows["prediction"] - rows["truth"]).abs().to_numpy())
    figure, axes = _panels(2, width=8.6, height=2.8)
    for row, (values, colour) in enumerate(zip(errors, (RED, BLUE), strict=True)):
        mean, se = mean_with_error(values)
        axes[0].errorbar(mean, -row, xerr=SIGMAS * se, fmt="o", color=colour, capsize=3)
    axes[0].set(yticks=[0, -1], ylim=(-1.6, 0.6), xlabel="mean absolute error (GPa)", title="each with its own error")
    axes[0].set_yticklabels(["straight line", "parabola"])
    compared = paired("the parabola is better", errors[1], errors[0])
    axes[1].errorbar(compared.difference, 0, xerr=SIGMAS * compared.standard_error, fmt="o", color="black", capsize=3)
    axes[1].axvline(0, color=GREY, ls=":")
    axes[1].set(yticks=[], xlabel="line less parabola (GPa)", title=f"the difference, paired: {compared.outcome}")
    return figure


# Session 3


@picture
def walls() -> Figure:
    """One convolution of a periodic field: with the neighbours of the next cell, and with a wall of zeros."""
    field = load_density("NaCl_225").values.mean((1, 2)).astype(float)
    kernel = np.full(5, 0.2)
    n = len(field)
    periodic = np.convolve(np.pad(field, 2, mode="wrap"), kernel, mode="valid")
    zeros = np.convolve(np.pad(field, 2), kernel, mode="valid")
    figure, (ax,) = _panels()
    ax.plot(np.arange(n) / n, field, color=GREY, label="input")
    ax.plot(np.arange(n) / n, periodic, color=BLUE, label="output, periodic")
    ax.plot(np.arange(n) / n, zeros, color=RED, ls="--", label="output, padded with zeros")
    ax.set(xlabel="place in the cell", ylabel="density (e/Å³)")
    ax.legend()
    return figure


@picture
def where_parameters_sit() -> Figure:
    """Weights of each layer of Model A, and of one dense layer in place of its average."""
    channels, labels, counts = 1, [], []
    for layer in ARCHITECTURES["A"]:
        labels.append(f"{layer.kernel}×{layer.kernel}×{layer.kernel}\n{channels} → {layer.channels}")
        counts.append(layer.kernel**3 * channels * layer.channels + layer.channels)
        channels = layer.channels
    labels.append("dense layer\non its input")
    counts.append(26**3 * ARCHITECTURES["A"][-2].channels)
    figure, (ax,) = _panels(width=8)
    bars = ax.bar(range(len(counts)), counts, color=[BLUE] * (len(counts) - 1) + [RED])
    ax.bar_label(bars, [f"{n:,}" for n in counts])
    ax.set(yscale="log", ylabel="weights and biases")
    ax.set_xticks(range(len(labels)), labels)
    return figure


@picture
def images_of_a_point() -> Figure:
    """Images of a general vector and of three special ones under the operations of the square."""
    figure, axes = _panels(3, width=8.6, height=3.1)
    for ax, (point, name) in zip(
        axes, (((2, 1), "general"), ((2, 2), "on a diagonal"), ((2, 0), "on an axis")), strict=True
    ):
        signs = np.array(np.meshgrid([1, -1], [1, -1])).reshape(2, -1).T
        images = np.unique(np.concatenate([signs * np.array(point), signs * np.array(point[::-1])]), axis=0)
        ax.plot(*images.T, "o", color=BLUE, ms=9)
        ax.plot(*point, "o", color=RED, ms=9)
        for line in ((1, 0), (0, 1), (1, 1), (1, -1)):
            ax.axline((0, 0), line, color=GREY, lw=0.6)
        ax.set(title=f"{name}: {len(images)} images", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        ax.axis("off")
    return figure


@picture
def tied_weights() -> Figure:
    """Weights of a cubic kernel, free and tied to the symmetry of the cube."""
    sizes = np.arange(1, 10, 2)
    figure, (ax,) = _panels()
    for count, colour, name in (
        (sizes**3, GREY, "free"),
        ([len(np.unique(cubic_orbits(n))) for n in sizes], BLUE, "tied to 48 operations"),
    ):
        ax.plot(sizes, count, "o-", color=colour, label=name)
        for x, y in zip(sizes, count, strict=True):
            ax.annotate(f"{y}", (x, y), xytext=(4, 4), textcoords="offset points", color=colour)
    ax.set(yscale="log", xlabel="edge of the kernel (voxels)", ylabel="weights", xticks=sizes)
    ax.legend()
    return figure


@picture
def whitened_descent() -> Figure:
    """Forty steps of gradient descent on one quadratic loss, in the given coordinates and in white ones."""
    X = course_features()[:, :2]
    X = (X - X.mean(0)) / X.std()
    covariance = np.cov(X.T)
    values = np.linalg.eigvalsh(covariance)
    figure, axes = _panels(2, width=8.6, height=3.4)
    for ax, curvature, name in (
        (axes[0], covariance, f"as given: curvatures differ {values[1] / values[0]:.0f} times"),
        (axes[1], np.eye(2), "white: one curvature"),
    ):
        w = np.array([1.0, -1.5])
        path = [w := w - 0.9 / np.linalg.eigvalsh(curvature)[-1] * curvature @ w for _ in range(40)]
        steps = np.array([[1.0, -1.5], *path])
        u, v = np.meshgrid(np.linspace(-2, 2, 80), np.linspace(-2, 2, 80))
        ax.contour(u, v, curvature[0, 0] * u**2 + 2 * curvature[0, 1] * u * v + curvature[1, 1] * v**2, 8, cmap="Greys")
        ax.plot(*steps.T, "o-", color=BLUE, ms=3, lw=1)
        ax.plot(0, 0, "*", color=RED, ms=12)
        ax.set(title=name, aspect="equal", xlabel="first weight", ylabel="second weight")
    return figure


@picture
def warm_restarts() -> Figure:
    """Learning rate of the lean networks over the paper's epochs."""
    from ecdlib.book.parameters import resolve

    p = resolve("training", {}, "full")
    start, cycle, growth, epochs = (
        getattr(p, name) for name in ("learning_rate", "first_cycle", "cycle_growth", "epochs")
    )
    rates: list[float] = []
    while len(rates) < epochs:
        rates += [start * (1 + np.cos(np.pi * t / cycle)) / 2 for t in range(cycle)]
        cycle *= growth
    figure, (ax,) = _panels(height=2.8)
    ax.plot(rates[:epochs], color=BLUE)
    ax.set(xlabel="epoch", ylabel="learning rate")
    return figure


# Session 4


@picture
def zeros_of_energy() -> Figure:
    """Two energies of the same crystals: they differ by the atoms that they count from."""
    crystals = course_crystals()
    total, cohesive = crystals["total_energy"], crystals["cohesive_energy"]
    figure, (ax,) = _panels(width=6.4, height=3.5)
    ax.plot(total, cohesive, "o", color=BLUE, ms=4)
    ends = [min(total.min(), cohesive.min()), max(total.max(), cohesive.max())]
    ax.plot(ends, ends, color=GREY, lw=1)
    ax.set(xlabel="total energy, ours (eV/atom)", ylabel="cohesive energy (eV/atom)")
    return figure


@picture
def linear_autoencoder() -> Figure:
    """What a linear autoencoder loses on the crystals that it was fitted on, and on others."""
    X = course_features()
    fit = folds_of(fold_numbers(len(X), 2, 0))[0]
    mean = X[fit.train].mean(0)
    _, _, directions = np.linalg.svd(X[fit.train] - mean, full_matrices=False)
    sizes = [1, 2, 3, 5, 8, 12, 20, 30, 45]
    figure, (ax,) = _panels()
    for among, colour, name in ((fit.train, BLUE, "crystals that it was fitted on"), (fit.test, RED, "other crystals")):
        own = X[among] - mean
        lost = [((own - own @ directions[:k].T @ directions[:k]) ** 2).sum() / (own**2).sum() for k in sizes]
        ax.plot(sizes, lost, "o-", color=colour, label=name)
    ax.set(xscale="log", yscale="log", xlabel="numbers kept (components)", ylabel="share of the variance that is lost")
    ax.set_xticks(sizes, [str(k) for k in sizes])
    ax.minorticks_off()
    ax.legend()
    return figure


@picture
def few_waves() -> Figure:
    """How well a density is restored from its largest plane waves."""
    figure, (ax,) = _panels()
    for name, colour in (("NaCl_225", BLUE), ("Al_225", RED)):
        values = load_density(name).values.astype(float)
        waves = np.fft.fftn(values)
        order = np.argsort(-np.abs(waves).ravel())
        shares, errors = np.geomspace(1e-3, 0.3, 12), []
        for share in shares:
            kept = np.zeros(values.size, dtype=complex)
            chosen = order[: max(1, int(share * values.size))]
            kept[chosen] = waves.ravel()[chosen]
            restored = np.fft.ifftn(kept.reshape(values.shape)).real
            errors.append(np.abs(restored - values).sum() / np.abs(values).sum())
        ax.plot(100 * shares, 100 * np.array(errors), "o-", color=colour, label=name.split("_")[0])
    ax.set(xscale="log", yscale="log", xlabel="plane waves kept (%)", ylabel="electrons misplaced (%)")
    ax.legend()
    return figure


@picture
def boosting() -> Figure:
    """Gradient boosting in one dimension: each tree corrects what the trees before it have left."""
    from sklearn.ensemble import GradientBoostingRegressor

    x, y = _mean_density()
    line = np.linspace(x.min(), x.max(), 400)[:, None]
    figure, axes = _panels(3, width=9.2, height=2.9, sharey=True)
    for ax, trees in zip(axes, (1, 10, 500), strict=True):
        model = GradientBoostingRegressor(n_estimators=trees, max_depth=2, random_state=0).fit(x[:, None], y)
        ax.plot(x, y, "o", color=GREY, ms=3)
        ax.plot(line, model.predict(line), color=BLUE)
        ax.set(title=f"{trees} tree{'s' * (trees > 1)}", xlabel="mean density (e/Å³)")
    axes[0].set_ylabel("bulk modulus (GPa)")
    return figure


@picture
def shared_credit() -> Figure:
    """An input and its copy share the credit; leaving one of them out changes nothing."""
    from sklearn.linear_model import Ridge

    x, y = _mean_density()
    x, y = (x - x.mean()) / x.std(), y - y.mean()
    figure, axes = _panels(2, width=8.6, height=2.9)
    for row, copies in enumerate((1, 2)):
        X = np.repeat(x[:, None], copies, axis=1)
        rows = cross_validate(lambda: Ridge(0.01), X, y, progress=False)
        credit = np.abs(Ridge(0.01).fit(X, y).coef_ * X).mean(0)  # Shapley values of a linear model
        left = 0.0
        for part, colour in zip(credit, (BLUE, RED), strict=False):
            axes[0].barh(-row, part, left=left, color=colour)
            left += float(part)
        mean, se = mean_with_error((rows["prediction"] - rows["truth"]).abs())
        axes[1].errorbar(mean, -row, xerr=SIGMAS * se, fmt="o", color="black", capsize=3)
    for ax in axes:
        ax.set(yticks=[0, -1], ylim=(-1.6, 0.6))
        ax.set_yticklabels(["one input", "and its copy"] if ax is axes[0] else [])
    axes[0].set_xlabel("mean absolute SHAP value (GPa)")
    axes[1].set_xlabel("error in cross-validation (GPa)")
    return figure


# Session 5


@picture
def messages() -> Figure:
    """How far an atom of rock salt hears after each step of message passing along its shortest bonds."""
    places = np.indices((11, 7)).reshape(2, -1).T
    centre = np.array([5, 3])
    steps = np.abs(places - centre).sum(1)  # bonds between, since each joins nearest neighbours
    figure, (ax,) = _panels(width=6.6, height=3.9)
    shade = mpl.colormaps["Blues_r"](np.clip(steps / 5, 0, 0.75))
    ax.scatter(*places.T, s=np.where(places.sum(1) % 2, 260, 120), c=shade, edgecolor=GREY, zorder=2)
    for place, step in zip(places, steps, strict=True):
        if step <= 3:
            ax.text(*place, str(step), ha="center", va="center", zorder=3, color="white" if step < 3 else "black")
    ax.add_patch(Polygon(centre + 3.5 * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)]), fill=False, edgecolor=RED))
    ax.set(aspect="equal", title="inside the red line: heard after three steps")
    ax.axis("off")
    return figure


@picture
def ensemble() -> Figure:
    """Five small networks: they agree where there are crystals and part where there are none."""
    from sklearn.neural_network import MLPRegressor

    x, y = _mean_density()
    inside = x < np.quantile(x, 0.75)
    X, t = (x[:, None] - x.mean()) / x.std(), (y - y.mean()) / y.std()
    line = np.linspace(X.min(), X.max(), 200)[:, None]
    figure, (ax,) = _panels()
    guesses = []
    for seed in range(5):
        network = MLPRegressor(
            hidden_layer_sizes=(8,), activation="tanh", solver="lbfgs", alpha=1e-2, max_iter=5000, random_state=seed
        )
        guesses.append(network.fit(X[inside], t[inside]).predict(line) * y.std() + y.mean())
        ax.plot(line * x.std() + x.mean(), guesses[-1], color=BLUE, lw=0.8, alpha=0.7)
    ax.plot(x[inside], y[inside], "o", color=GREY, ms=4, label="train")
    ax.plot(x[~inside], y[~inside], "o", color=RED, ms=4, label="not shown to the networks")
    ax.set(xlabel="mean density (e/Å³)", ylabel="bulk modulus (GPa)", ylim=(-50, 450))
    ax.legend()
    return figure


@picture
def bounds() -> Figure:
    """Shear modulus of a polycrystal after Voigt and Reuss, as one constant of the grains changes."""
    record = load_strains("LiH_225")
    delta, energies = strain_energies(record)
    constants = cubic_constants(delta, energies, float(abs(np.linalg.det(record["settings"]["cell"]))))
    anisotropy = np.geomspace(0.2, 5, 60)
    stiffness = np.repeat(constants.stiffness[None], len(anisotropy), axis=0)
    for k in (3, 4, 5):
        stiffness[:, k, k] = anisotropy * (constants.c11 - constants.c12) / 2
    moduli = voigt_reuss_hill(stiffness)
    figure, (ax,) = _panels()
    ax.fill_between(anisotropy, moduli["G_reuss"], moduli["G_voigt"], color=BLUE, alpha=0.2, lw=0)
    ax.plot(anisotropy, moduli["G_voigt"], color=BLUE, label="Voigt: equal strain")
    ax.plot(anisotropy, moduli["G"], color="black", label="Hill: their mean")
    ax.plot(anisotropy, moduli["G_reuss"], color=RED, label="Reuss: equal stress")
    ax.plot(constants.zener, voigt_reuss_hill(constants.stiffness)["G"], "o", color="black")
    ax.annotate(
        "LiH",
        (constants.zener, voigt_reuss_hill(constants.stiffness)["G"]),
        xytext=(6, -12),
        textcoords="offset points",
    )
    ax.set(xscale="log", xlabel="anisotropy 2 C44 / (C11 − C12)", ylabel="G (GPa)")
    ax.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    ax.minorticks_off()
    ax.legend()
    return figure


@picture
def winners_curse() -> Figure:
    """Predictions with an error of mean zero: those at the top of the list are too high."""
    truth = np.repeat(course_crystals()["bulk_modulus"].to_numpy(), 10)
    predicted = truth + np.random.default_rng(0).normal(0, 40, len(truth))
    top = np.argsort(-predicted)[:60]
    figure, (ax,) = _panels(width=6.4, height=3.7)
    ax.plot(predicted, truth, "o", color=GREY, ms=2, alpha=0.4)
    ax.plot(predicted[top], truth[top], "o", color=RED, ms=3)
    ends = [predicted.min(), predicted.max()]
    ax.plot(ends, ends, color="black", lw=1)
    all_, chosen = (predicted - truth).mean(), (predicted - truth)[top].mean()
    ax.set(
        title=f"prediction less truth: all {all_:+.0f}, top 60 {chosen:+.0f} GPa",
        xlabel="label plus noise of 40 GPa",
        ylabel="label (GPa)",
    )
    return figure


# Session 6


@picture
def verdicts() -> Figure:
    """Six results beside a printed number and its tolerance, judged by the rule of the book."""
    printed, tolerance = "10.0", Tolerance.parse("10 %")
    cases = ((10.2, 0.1), (10.8, 0.1), (10.8, 0.3), (11.2, 0.3), (9.2, 0.6), (12.0, 0.3))
    colours = {"holds": BLUE, "undecided": GREY, "fails": RED}
    figure, (ax,) = _panels(width=8)
    ax.axvspan(9, 11, color=BLUE, alpha=0.12, lw=0)
    ax.axvline(10, color="black", lw=1)
    for row, (value, se) in enumerate(cases):
        outcome = tolerance.outcome(printed, value, se)
        ax.errorbar(value, -row, xerr=SIGMAS * se, fmt="o", color=colours[outcome], capsize=3)
        ax.text(13.1, -row, outcome, va="center", color=colours[outcome])
    ax.set(
        yticks=[],
        xlim=(7.6, 14.2),
        ylim=(-5.6, 0.6),
        xlabel="printed 10.0, tolerance 10 % of it; bars of two standard errors",
    )
    return figure


@picture
def luck_of_the_test_set() -> Figure:
    """Errors of one model on many test sets of three sizes."""
    from sklearn.linear_model import LinearRegression

    x, y = _mean_density()
    rows = cross_validate(LinearRegression, x[:, None], y, progress=False)
    errors = (rows["prediction"] - rows["truth"]).abs().to_numpy()
    rng = np.random.default_rng(0)
    figure, (ax,) = _panels()
    for row, n in enumerate((10, 30, 90)):
        means = [errors[rng.choice(len(errors), n, replace=False)].mean() for _ in range(60)]
        ax.plot(means, -row + rng.uniform(-0.15, 0.15, 60), "o", color=BLUE, ms=4, alpha=0.5)
    ax.axvline(errors.mean(), color=RED)
    ax.set(yticks=[0, -1, -2], xlabel="mean absolute error of one model (GPa); line: all crystals")
    ax.set_yticklabels([f"{n} crystals" for n in (10, 30, 90)])
    return figure


@picture
def false_alarms() -> Figure:
    """How likely at least one false alarm is among comparisons that all have no difference."""
    n = np.arange(1, 101)
    figure, (ax,) = _panels(height=2.9)
    ax.plot(n, 1 - 0.954**n, color=BLUE)
    ax.set(xlabel="comparisons without a true difference", ylabel="chance of one beyond 2 s.e.", ylim=(0, 1))
    return figure


@picture
def kinds_of_artifacts() -> Figure:
    """What the list of artifacts holds: figures, tables, numbers, claims of each paper."""
    artifacts = [a for a in load_artifacts().values() if a.paper in PAPERS]
    kinds = sorted({a.kind for a in artifacts}, key=lambda kind: -sum(a.kind == kind for a in artifacts))
    figure, (ax,) = _panels(width=8)
    left = np.zeros(len(kinds))
    for paper, colour in zip(PAPERS, (BLUE, RED, "#4d9221", GREY), strict=True):
        counts = np.array([sum(a.kind == kind and a.paper == paper for a in artifacts) for kind in kinds])
        ax.barh(range(len(kinds)), counts, left=left, color=colour, alpha=0.8, label=PAPERS[paper])
        left += counts
    ax.set(xlabel="artifacts")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.legend()
    return figure
