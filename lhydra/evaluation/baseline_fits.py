"""How the baselines score: popularity, ItemKNN and iALS through implicit, EASE in closed form."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LARGE_TRAIN_PLAYS = 2_000_000  # train plays from which one value per axis must do
SLOW_EASE_ROWS = 5_000  # rows from which an inverse takes many seconds
MAX_SCORES = 1 << 24  # scores held at a time

Params = dict[str, Any]
Scores = Callable[[I64], F32]  # positions of users -> scores (n, tracks), float32, writable
Fit = Callable[[Params], Scores]


def fit_popular(train: "csr_matrix", seed: int = 0) -> Fit:
    """Scores a track by its train listeners, whoever asks: a fit of no settings.

    Args:
        train: (users, tracks) play counts, float32.
        seed: unused.

    Returns:
        A fit: settings -> scores.
    """
    listeners = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    return lambda params: lambda users: np.tile(listeners, (len(users), 1))


def fit_itemknn(train: "csr_matrix", seed: int = 0) -> Fit:
    """Adds up similarities to neighbours (Deshpande and Karypis 2004): a fit of {kind, neighbours}.

    Args:
        train: (users, tracks) play counts, float32.
        seed: unused.

    Returns:
        A fit: settings -> scores.
    """
    from scipy.sparse import csr_matrix

    binary = csr_matrix((np.ones_like(train.data), train.indices, train.indptr), train.shape)
    most = 300 if train.nnz > LARGE_TRAIN_PLAYS else 1000
    kept: dict[str, csr_matrix] = {}  # by kind, at least `most` neighbours: fewer are taken from them

    def fit(params: Params) -> Scores:
        kind, neighbours = params["kind"], params["neighbours"]
        if kind not in kept:
            kept[kind] = _similarities(binary, kind, max(neighbours, most))
        similar = _strongest(kept[kind], neighbours)
        return lambda users: np.asarray((binary[users] @ similar).toarray(), np.float32)

    return fit


def _similarities(binary: "csr_matrix", kind: str, neighbours: int) -> "csr_matrix":
    """(tracks, tracks): each row a track and its nearest neighbours; itself counts as one and is never listed."""
    with _quietly():
        from implicit import nearest_neighbours

        models = {"cosine": "CosineRecommender", "tfidf": "TFIDFRecommender", "bm25": "BM25Recommender"}
        model = getattr(nearest_neighbours, models[kind])(K=neighbours + 1)
        model.fit(binary, show_progress=False)
    return model.similarity.tocsr()


def _strongest(similar: "csr_matrix", neighbours: int) -> "csr_matrix":
    """`similar` with at most the `neighbours` largest of each row, and the track itself."""
    from scipy.sparse import csr_matrix

    sizes = np.diff(similar.indptr)
    if sizes.max(initial=0) <= neighbours + 1:
        return similar
    row = np.repeat(np.arange(similar.shape[0]), sizes)
    order = np.lexsort((similar.indices, -similar.data, row))
    order = order[np.arange(len(row)) - similar.indptr[row] <= neighbours]
    return csr_matrix((similar.data[order], (row[order], similar.indices[order])), similar.shape)


def fit_ials(train: "csr_matrix", seed: int = 0) -> Fit:
    """Factorises weighted plays (Hu, Koren and Volinsky 2008): a fit of {factors, regularization, alpha, weight}.

    Confidence is alpha, or alpha * log(1 + count).

    Args:
        train: (users, tracks) play counts, float32.
        seed: of the factors.

    Returns:
        A fit: settings -> scores.
    """
    from scipy.sparse import csr_matrix

    def fit(params: Params) -> Scores:
        weight = np.log1p(train.data) if params["weight"] == "log" else np.ones_like(train.data)
        with _quietly():
            from implicit.cpu.als import AlternatingLeastSquares

            model = AlternatingLeastSquares(
                params["factors"], params["regularization"], params["alpha"], random_state=seed
            )
            model.fit(csr_matrix((weight, train.indices, train.indptr), train.shape), show_progress=False)
        return lambda users: np.asarray(model.user_factors[users] @ model.item_factors.T, np.float32)

    return fit


def fit_ease(train: "csr_matrix", seed: int = 0) -> Fit:
    """Fits a linear autoencoder in closed form (Steck 2019): a fit of {lambda}.

    Scores are X B, B = I - P / diag(P), P = (X'X + lambda I)^-1, X the binary plays. With fewer users than tracks P is
    never made: X P = (X X' + lambda I)^-1 X (Woodbury), and of P only the diagonal.

    Args:
        train: (users, tracks) play counts, float32.
        seed: unused.

    Returns:
        A fit: settings -> scores.
    """
    from scipy.sparse import csr_matrix

    kind = np.float64 if min(train.shape) <= SLOW_EASE_ROWS else np.float32  # memory
    binary = csr_matrix((np.ones_like(train.data, kind), train.indices, train.indptr), train.shape)
    by_user = train.shape[0] < train.shape[1]
    gram = ((binary @ binary.T) if by_user else (binary.T @ binary)).toarray()

    def fit(params: Params) -> Scores:
        regularized = gram.copy()
        regularized[np.diag_indices_from(regularized)] += params["lambda"]
        inverse = _inverse(regularized)
        if not by_user:
            weights = -inverse / np.diag(inverse)
            np.fill_diagonal(weights, 0)
            return lambda users: np.asarray(binary[users] @ weights, np.float32)
        diagonal = np.empty(train.shape[1], kind)
        columns = binary.tocsc()
        step = max(1, MAX_SCORES // len(inverse))
        for start in range(0, len(diagonal), step):
            some = columns[:, start : start + step]
            projected = np.asarray((some.T @ inverse), kind)  # (tracks, users): A is symmetric
            diagonal[start : start + step] = np.asarray(some.T.multiply(projected).sum(axis=1)).ravel()
        diagonal = (1 - diagonal) / params["lambda"]

        def scores(users: I64) -> F32:
            return np.asarray(binary[users].toarray() - (inverse[users] @ binary) / diagonal, np.float32)

        return scores

    return fit


FITS: dict[str, Callable[["csr_matrix", int], Fit]] = {
    "popular": fit_popular,
    "itemknn": fit_itemknn,
    "ials": fit_ials,
    "ease": fit_ease,
}


def _inverse(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of a symmetric positive definite matrix, which is used up."""
    from scipy.linalg import lapack

    factor, potri = (lapack.dpotrf, lapack.dpotri) if matrix.dtype == np.float64 else (lapack.spotrf, lapack.spotri)
    lower, failed = factor(matrix.T, lower=True, overwrite_a=True)
    inverse, failed_too = potri(lower, lower=True, overwrite_c=True)
    if failed or failed_too:
        raise ArithmeticError("the Gram matrix is not positive definite")
    inverse = np.tril(inverse)
    diagonal = np.diag(inverse).copy()
    inverse += inverse.T
    np.fill_diagonal(inverse, diagonal)
    return np.asarray(inverse)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """One BLAS thread, as implicit asks for beside its own threads, and none of its warnings about that."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
