"""How the baselines score: popularity, ItemKNN and iALS through implicit; RP3beta; EASE and DLAE in closed form."""

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
SLOW_ROWS = 5_000  # rows from which an inverse takes many seconds
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
    binary = _binary_to_invert(train)
    kind = binary.dtype
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


def fit_dlae(train: "csr_matrix", seed: int = 0) -> Fit:
    """Fits a denoising linear autoencoder in closed form (DLAE of Steck 2020): a fit of {dropout, lambda}.

    Least squares from plays of which a share p is dropped at random to all plays, in expectation: scores are X B,
    B = (X'X + D)^-1 X'X, D = lambda I + p / (1 - p) diag(X'X), X the binary plays; the diagonal of B is free. With
    fewer users than tracks X B = X - (X D^-1 X' + I)^-1 X (Woodbury).

    Args:
        train: (users, tracks) play counts, float32.
        seed: unused.

    Returns:
        A fit: settings -> scores.
    """
    from scipy.sparse import diags_array

    binary = _binary_to_invert(train)
    listeners = np.asarray(binary.sum(axis=0)).ravel()
    by_user = train.shape[0] < train.shape[1]
    gram = None if by_user else (binary.T @ binary).toarray()

    def fit(params: Params) -> Scores:
        dropped = params["dropout"]
        penalty = (params["lambda"] + dropped / (1 - dropped) * listeners).astype(binary.dtype)
        if gram is None:
            regularized = (binary @ diags_array(1 / penalty) @ binary.T).toarray()
            regularized[np.diag_indices_from(regularized)] += 1
            inverse = _inverse(regularized)
            return lambda users: np.asarray(binary[users].toarray() - inverse[users] @ binary, np.float32)
        regularized = gram.copy()
        regularized[np.diag_indices_from(regularized)] += penalty
        weights = -_inverse(regularized) * penalty  # B = I - (X'X + D)^-1 D
        weights[np.diag_indices_from(weights)] += 1
        return lambda users: np.asarray(binary[users] @ weights, np.float32)

    return fit


def fit_rp3beta(train: "csr_matrix", seed: int = 0) -> Fit:
    """Walks from a user to tracks, to their listeners, to their tracks: a fit of {alpha, beta, neighbours}.

    RP3beta (Christoffel et al. 2015, Paudel et al. 2017; P3alpha without beta, Cooper et al. 2014): the probability of
    each step to the power alpha, the end's over its listeners to the power beta. Of each track's walks the `neighbours`
    likeliest ends are kept, itself not.

    Args:
        train: (users, tracks) play counts, float32.
        seed: unused.

    Returns:
        A fit: settings -> scores.
    """
    from scipy.sparse import csr_matrix, diags_array, vstack

    binary = csr_matrix((np.ones_like(train.data), train.indices, train.indptr), train.shape)
    played = np.maximum(np.diff(binary.indptr), 1)
    listeners = np.maximum(np.bincount(binary.indices, minlength=binary.shape[1]), 1)

    def fit(params: Params) -> Scores:
        alpha = params["alpha"]
        to_tracks = (diags_array(played**-alpha) @ binary).tocsr()
        to_users = (diags_array(listeners**-alpha) @ binary.T).tocsr()
        ends = to_tracks @ diags_array(listeners ** -params["beta"])
        step = max(1, MAX_SCORES // len(listeners))
        blocks = []
        for start in range(0, len(listeners), step):
            walks = (to_users[start : start + step] @ ends).tocsr()
            blocks.append(_others(walks, start, params["neighbours"]))
        similar = vstack(blocks).tocsr().astype(np.float32)
        return lambda users: np.asarray((to_tracks[users] @ similar).toarray(), np.float32)

    return fit


def _others(walks: "csr_matrix", start: int, neighbours: int) -> "csr_matrix":
    """`walks` of tracks from `start` with at most the `neighbours` largest of each row, the track itself left out."""
    from scipy.sparse import csr_matrix

    kept = []
    for row in range(walks.shape[0]):
        own = np.arange(walks.indptr[row], walks.indptr[row + 1])
        own = own[walks.indices[own] != start + row]
        if len(own) > neighbours:
            own = own[np.argpartition(-walks.data[own], neighbours - 1)[:neighbours]]
        kept.append(own)
    offsets = np.cumsum([0, *map(len, kept)])
    at = np.concatenate(kept)
    return csr_matrix((walks.data[at], walks.indices[at], offsets), walks.shape)


FITS: dict[str, Callable[["csr_matrix", int], Fit]] = {
    "popular": fit_popular,
    "itemknn": fit_itemknn,
    "rp3beta": fit_rp3beta,
    "ials": fit_ials,
    "ease": fit_ease,
    "dlae": fit_dlae,
}


def _binary_to_invert(train: "csr_matrix") -> "csr_matrix":
    """The plays as ones, in double precision where the matrix to invert is small."""
    from scipy.sparse import csr_matrix

    kind = np.float64 if min(train.shape) <= SLOW_ROWS else np.float32  # in half the memory
    return csr_matrix((np.ones_like(train.data, kind), train.indices, train.indptr), train.shape)


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
