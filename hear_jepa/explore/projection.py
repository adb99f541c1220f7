"""Embeddings -> places on a plane, and clusters."""

import numpy

from hear_jepa.errors import OptionError

METHODS = ("pca", "umap")


def project(standard: numpy.ndarray, method: str) -> tuple[numpy.ndarray, tuple[str, str]]:
    """Standardised embeddings [n, size] -> places [n, 2], and the names of the two axes."""
    if method == "umap":
        try:
            import umap  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise OptionError("UMAP needs umap-learn: pip install umap-learn, or take --method pca") from error
        neighbours = min(15, len(standard) - 1)
        return umap.UMAP(n_neighbors=neighbours, random_state=0).fit_transform(standard), ("UMAP 1", "UMAP 2")
    few = len(standard) < standard.shape[1]  # then the products of rows are the smaller matrix, of the same eigenvalues
    variances, vectors = numpy.linalg.eigh(standard @ standard.T if few else standard.T @ standard)
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1][:, :2]
    share = variances / max(variances.sum(), 1e-12)
    first, second = (f"principal component {k + 1} ({share[k]:.0%} of the variance)" for k in range(2))
    return (vectors * numpy.sqrt(variances[:2]) if few else standard @ vectors), (first, second)


def clusters(standard: numpy.ndarray, n: int) -> list[int]:
    """k-means: the cluster of each row of [n, size], 0 for the largest.

    Raises OptionError for fewer than one, and without scikit-learn.
    """
    if n < 1:
        raise OptionError(f"there must be at least one cluster, not {n}")
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise OptionError("clusters need scikit-learn: pip install scikit-learn") from error
    model = MiniBatchKMeans(min(n, len(standard)), random_state=0, n_init=3)  # pyright: ignore[reportArgumentType]
    found = model.fit_predict(standard)
    rank = numpy.argsort(numpy.argsort(-numpy.bincount(found), kind="stable"))
    return rank[found].tolist()
