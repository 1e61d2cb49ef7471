"""Makes the reference files beside it: what DADApy and scikit-learn say of nine small data sets.

Neither is needed to run the tests (DADApy wants numpy < 2 and an old jax). To make the files again, in an
environment of their own: ``pip install dadapy==0.3.4 scikit-learn==1.9.1; python make_dadapy.py``.

``density_*.npz`` holds the points and DADApy's intrinsic dimensions, densities and Advanced Density Peaks
clusters of them, once with k = 16 and once with its k*; ``scores.npz`` holds scikit-learn's homogeneity
scores and logistic regression. Points are stored as they were used, so nothing hangs on a random generator.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from dadapy import Data
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import homogeneity_score

HERE = Path(__file__).parent
MAXK, K, Z = 128, 16, 1.65


def mixture(rng, n, centers, spread):
    """Points of Gaussians of one spread each around the centers, about as many of each."""
    which = np.arange(n) % len(centers)
    return centers[which] + np.asarray(spread)[which % len(spread), None] * rng.normal(
        size=(n, centers.shape[1])
    )


def moons(rng, n):
    """Two half circles that reach into each other, and a tenth of uniform noise."""
    angle = np.pi * rng.random(n)
    side = np.arange(n) % 2
    x = np.stack(
        [
            np.where(side, 1 - np.cos(angle), np.cos(angle)),
            np.where(side, 0.5 - np.sin(angle), np.sin(angle)),
        ],
        1,
    )
    x += 0.08 * rng.normal(size=x.shape)
    x[: n // 10] = rng.uniform([-1.5, -1], [2.5, 1.5], size=(n // 10, 2))
    return x


def roll(rng, n):
    """A rolled-up sheet with three dense places."""
    along = np.concatenate([rng.normal(c, 0.5, n // 3) for c in (5, 8.5, 12)])
    return np.stack([along * np.cos(along), along * np.sin(along), 6 * rng.random(len(along))], 1)


def tokens(rng, n, width, apart):
    """Image and text tokens: a direction for each modality, ``apart`` as long, and subjects in a few more."""
    modality = (np.arange(n) % 2).astype(np.int8)
    base = rng.normal(size=(2, width)) * apart
    subspace = rng.normal(size=(4, width)) / 2
    subject = rng.integers(0, 3, n)
    place = 2.5 * rng.normal(size=(3, 4))[subject] + rng.normal(size=(n, 4))
    x = base[modality] + place @ subspace + 0.15 * rng.normal(size=(n, width))
    return x * rng.uniform(0.5, 3, size=(n, 1)), modality  # lengths must not matter


def twins(rng, n):
    """Every point twice, so that first neighbours coincide and densities tie."""
    return np.repeat(mixture(rng, n // 2, np.array([[0.0, 0], [5, 0], [0, 4]]), [1.0]), 2, axis=0)


def data_sets():
    """Name -> (points, metric, modality)."""
    rng = np.random.default_rng(20)
    two = rng.uniform(-4, 4, size=(5, 2))
    yield "plane", mixture(rng, 700, two, [0.5, 0.9]), "euclidean", None
    yield "five", mixture(rng, 600, 1.9 * rng.normal(size=(4, 5)), [1.0]), "euclidean", None
    yield "ten", mixture(rng, 500, 1.5 * rng.normal(size=(3, 10)), [1.0, 0.7]), "euclidean", None
    yield "moons", moons(rng, 700), "euclidean", None
    yield "roll", roll(rng, 600), "euclidean", None
    yield "one", rng.normal(size=(500, 3)), "euclidean", None
    yield "twins", twins(rng, 600), "euclidean", None
    x, modality = tokens(rng, 600, 24, 1.5)
    yield "apart", x, "cosine", modality
    x, modality = tokens(rng, 600, 24, 0.55)
    yield "mixed", x, "cosine", modality


def of_data_set(x, metric, modality):
    """All that DADApy says of one data set."""
    data = Data(x.astype(np.float64), maxk=MAXK)
    data.compute_distances(maxk=MAXK, metric=metric)
    out = {}
    if not (data.distances[:, 1] == 0).any():
        out["two_nn"] = data.compute_id_2NN()[0]
        out["two_nn_ml"] = data.compute_id_2NN(algorithm="ml")[0]
        out["gride"], out["gride_error"], out["gride_scale"] = data.return_id_scaling_gride(range_max=MAXK)
        dimension = out["gride"][3]  # ranks 8 and 16, as NG's code takes it
    else:
        dimension = 2.0
    out["dimension"] = dimension
    for name in ("fixed", "star"):
        data.set_id(dimension)
        if name == "fixed":
            data.compute_density_kNN(k=K)
        else:
            data.compute_kstar()
            out["star_k"] = data.kstar.astype(np.int16)
            data.compute_density_kstarNN()
        out[f"{name}_log_density"] = data.log_den.astype(np.float32)
        out[f"{name}_labels"] = data.compute_clustering_ADP(Z=Z).astype(np.int16)
        out[f"{name}_centers"] = np.array(data.cluster_centers, dtype=np.int16)
        out[f"{name}_saddles"] = np.asarray(data.log_den_bord)
        out[f"{name}_saddle_points"] = np.asarray(data.bord_indices, dtype=np.int16)
        out[f"{name}_halo"] = data.compute_clustering_ADP(Z=Z, halo=True) == -1
        if modality is not None:
            out[f"{name}_homogeneity"] = homogeneity_score(modality, out[f"{name}_labels"])
    return out


def scores():
    """scikit-learn's homogeneity of a few labellings, and its logistic regression on a small data set."""
    rng = np.random.default_rng(5)
    classes = rng.integers(0, 3, size=(6, 200))
    clusters = np.stack(
        [
            rng.integers(0, 4, 200),
            classes[1],
            np.zeros(200, int),
            np.arange(200),
            classes[4] // 2,
            rng.integers(0, 9, 200),
        ]
    )
    clusters[5, :150] = classes[5, :150]
    classes[2, :190] = 1
    homogeneity = [homogeneity_score(a, b) for a, b in zip(classes, clusters, strict=True)]
    x = rng.normal(size=(120, 6)).astype(np.float32)
    y = (x[:, :3] + 0.8 * rng.normal(size=(120, 3))).argmax(1)
    ridge = 0.02
    model = LogisticRegression(C=1 / (ridge * 120), tol=1e-12, max_iter=10_000).fit(x.astype(np.float64), y)
    np.savez_compressed(
        HERE / "scores.npz",
        classes=classes.astype(np.int16),
        clusters=clusters.astype(np.int16),
        homogeneity=homogeneity,
        probe_x=x,
        probe_y=y.astype(np.int8),
        probe_ridge=ridge,
        probe_probability=model.predict_proba(x.astype(np.float64)),
        version=version("scikit-learn"),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, x, metric, modality in data_sets():
        x = x.astype(np.float16 if x.shape[1] > 5 else np.float32)
        extra = {} if modality is None else {"modality": modality}
        out = of_data_set(x, metric, modality)
        np.savez_compressed(
            HERE / f"density_{name}.npz", x=x, metric=metric, version=version("dadapy"), **extra, **out
        )
        print(
            name,
            x.shape,
            f"d = {out['dimension']:.2f}",
            *(
                f"{w}: {len(out[f'{w}_centers'])} clusters, halo {out[f'{w}_halo'].mean():.2f},"
                f" homogeneity {out.get(f'{w}_homogeneity', float('nan')):.3f}"
                for w in ("fixed", "star")
            ),
        )
    scores()
