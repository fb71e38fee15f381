"""The whole network: item tower, user tower, prediction head. To change the model, change this file.

Shapes: B users, N tracks, H history entries, D = dim. Towers give unit vectors; temperature and logQ live in the
losses only, so the index sees plain cosine. Two-tower retrieval after Yi et al. 2019 (sampling-bias-corrected
neural modeling) with a history encoder in place of a user table; factorised crosses after Rendle 2010 (FM).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lhydra.features.item_item import CHANNELS
from lhydra.training.dropout import Dropout
from lhydra.training.moment_network import MomentHead
from lhydra.training.shape import Shape, embeddings, width_of

# (user id column, track id column) pairs that the head crosses, where both exist.
CROSSES = (
    ("age_group", "genre*"),
    ("gender", "genre*"),
    ("region", "genre*"),
    ("country", "genre*"),
    ("country", "artist"),
    ("top_genre", "genre*"),
    ("top_quadrant", "quadrant"),
)
CROSS_DIM = 8
SIGNALS = 2 + len(CHANNELS)  # of a pair: cosine, popularity, co-listening


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, outputs)
    )


def _silence(layers: nn.Sequential) -> None:
    """Makes an MLP give zero until it is trained: the towers start as what their ids stand for."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def _looked_up(tables: Sequence[Tensor], ids: Tensor) -> Tensor:
    """(B, c, w) one row of each of c tables (size, w): a graph looks once, and not once a table."""
    starts = torch.tensor([0, *itertools.accumulate(len(table) for table in tables)])[:-1]
    return F.embedding(ids + starts.to(ids.device), torch.cat(list(tables)))


def _of_known(layer: nn.Linear, known: list[Tensor], tables: nn.ModuleList, ids: Tensor) -> Tensor:
    """(B, h) what a layer gives for what is known of users, their (B, c) ids last: W [x, e] = Wx x + (We e)."""
    width = sum(part.shape[1] for part in known)
    found = F.linear(torch.cat(known, 1), layer.weight[:, :width], layer.bias)
    if not len(tables):
        return found
    embedded = [table.get_parameter("weight") for table in tables]
    weights = torch.split(layer.weight[:, width:], [table.shape[1] for table in embedded], 1)
    return found + _looked_up([table @ part.T for table, part in zip(embedded, weights, strict=True)], ids).sum(1)


class ItemTower(nn.Module):
    """Track features -> retrieval vector (N, D) of unit norm and history vector (N, D).

    Args:
        shape: of the network.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        (_, tracks), *others = shape.track_ids
        self.retrieval_id = nn.Embedding(tracks, shape.dim)
        self.history_id = nn.Embedding(tracks, shape.dim)  # untied: measured better than one table for both
        self.ids = embeddings(tuple(others))
        bag_width = width_of(shape.bag_size) if shape.bag_size > 1 else 0
        self.bag = nn.Embedding(shape.bag_size, max(bag_width, 1), padding_idx=0)
        self.use_bag = bag_width > 0
        content = shape.track_dense + sum(width_of(size) for _, size in others) + bag_width
        self.use_content = content > 0
        if self.use_content:
            self.content = _mlp(content, shape.hidden, 2 * shape.dim, shape.dropout)
            _silence(self.content)
        for table in (self.retrieval_id, self.history_id):
            nn.init.normal_(table.weight, std=shape.dim**-0.5)  # row 0 stands for tracks unknown to training

    def forward(self, dense: Tensor, ids: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds tracks.

        Args:
            dense: (N, dt) float32.
            ids: (N, ct) int64, track_id first.
            bags: (N, w) int64, 0 where a bag ends.

        Returns:
            (N, D) float32 retrieval vectors of unit norm, and (N, D) float32 history vectors.
        """
        retrieval, history = self.added_up(dense, ids, bags)
        return F.normalize(retrieval, dim=1), history

    def added_up(self, dense: Tensor, ids: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up what ids and content say.

        Args:
            dense: as in `forward`, and so are the others.
            ids: (N, ct).
            bags: (N, w).

        Returns:
            (N, D) float32 of any norm, and (N, D) float32 history vectors.
        """
        retrieval, history = self.retrieval_id(ids[:, 0]), self.history_id(ids[:, 0])  # (N, D)
        if self.use_content:
            parts = [dense, *(table(ids[:, i]) for i, table in enumerate(self.ids, 1))]
            if self.use_bag:
                some = (bags > 0).to(dense.dtype).sum(1, keepdim=True)  # (N, 1)
                parts.append(self.bag(bags).sum(1) / some.clamp(min=1.0))  # row 0, the padding, is and stays 0
            a, b = self.content(torch.cat(parts, 1)).chunk(2, 1)
            retrieval, history = retrieval + a, history + b
        return retrieval, history

    @torch.no_grad()
    def start_from(self, numbers: Tensor, item: Tensor, history: Tensor) -> None:
        """Makes the ids stand for factors, such that cosines order tracks as the products user . item do.

        One more column fills every item vector up to the longest (Bachrach et al. 2014); what is left starts as noise.

        Args:
            numbers: (n,) int64 of the track ids, 0 for tracks without one.
            item: (n, f) float32 item factors, f < D.
            history: (n, f) float32, whose sums are user factors.
        """
        norm, width = item.norm(dim=1), item.shape[1]
        longest = norm.max().clamp(min=1e-6) * 1.001
        known = numbers > 0
        for table in (self.retrieval_id, self.history_id):
            table.weight *= 0.05  # not 0: columns that are 0 on both sides have no gradient
        at = numbers[known]
        self.retrieval_id.weight[at, :width] += (item / longest)[known]
        self.retrieval_id.weight[at, width] += (1 - (norm / longest) ** 2).clamp(min=0).sqrt()[known]
        self.history_id.weight[at, :width] += history[known]


class UserTower(nn.Module):
    """Profile, aggregates and history -> user vector (B, D) of unit norm. Holds no table of users or tracks.

    Args:
        shape: of the network.
        entry_features: columns of an entry of a history.
    """

    def __init__(self, shape: Shape, entry_features: int) -> None:
        super().__init__()
        self.ids = embeddings(shape.user_ids)
        inputs = shape.user_dense + sum(width_of(size) for _, size in shape.user_ids)
        self.profile = _mlp(inputs, shape.hidden, shape.dim, shape.dropout)
        self.weigh = nn.Linear(entry_features, 1, bias=False)
        _silence(self.profile)
        nn.init.zeros_(self.weigh.weight)
        with torch.no_grad():
            self.weigh.weight[0, 0] = 1.0  # plays weigh as the log of their count until training says otherwise

    def forward(self, dense: Tensor, ids: Tensor, history: Tensor, entry: Tensor, mask: Tensor) -> Tensor:
        """Embeds users.

        Args:
            dense: (B, du) float32 columns.
            ids: (B, cu) int64 columns.
            history: (B, H, D) float16 or float32 history vectors.
            entry: (B, H, e) float32 count, gap and position of each play.
            mask: (B, H) float32, 0 where a history ends.

        Returns:
            (B, D) float32 of unit norm.
        """
        history = history.float()  # a bundle keeps it as halves
        weight = torch.exp(self.weigh(entry).squeeze(-1).clamp(-4.0, 4.0)) * mask  # (B, H)
        size = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=1e-3)  # sqrt(n) when all weigh 1
        pooled = (weight.unsqueeze(1) @ history).squeeze(1) / size  # (B, D)
        first, rest = self.profile[0], self.profile[1:]
        assert isinstance(first, nn.Linear)
        vector = pooled + rest(_of_known(first, [dense], self.ids, ids))
        unit: Tensor = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp(min=1e-12)
        return unit


class Head(nn.Module):
    """(user, track) pairs -> logit (B, N) and calibrated probability (B, N), with all cross features inside.

    The first layer over [u, v, u*v, x] is folded exactly: W[u, v, u*v, x] = Wu u + (Wv + Wuv diag(u)) v + Wx x, and
    so are the crosses: W (a * b) = (W diag(a)) b. The user's part is computed once and becomes a matrix that every
    track's own row is multiplied by; only |preference - track| is made per pair.
    It starts as the retrieval order: a scaled cosine, plus weighted signals, plus what the deep part learns.

    Args:
        shape: of the network.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.preference = shape.preference
        users = {name: (i, size) for i, (name, size) in enumerate(shape.user_ids)}
        tracks = {name: (i, size) for i, (name, size) in enumerate(shape.track_ids)}
        self.pairs = [(users[u], tracks[t]) for u, t in CROSSES if u in users and t in tracks]
        self.cross_user = nn.ModuleList(nn.Embedding(size, CROSS_DIM) for (_, size), _ in self.pairs)
        self.cross_track = nn.ModuleList(nn.Embedding(size, CROSS_DIM) for _, (_, size) in self.pairs)
        self.by_track: dict[int, list[int]] = {}
        for i, (_, (column, _)) in enumerate(self.pairs):
            self.by_track.setdefault(column, []).append(i)
        self.user_ids = embeddings(shape.user_ids)
        known_users = shape.dim + shape.user_dense + sum(width_of(size) for _, size in shape.user_ids)
        pair = 3 * shape.track_dense + CROSS_DIM * len(self.pairs) + SIGNALS
        hidden = shape.hidden // 2
        self.of_user = nn.Linear(known_users, hidden)
        self.of_track = nn.Linear(shape.dim, hidden, bias=False)
        self.of_product = nn.Linear(shape.dim, hidden, bias=False)
        self.of_pair = nn.Linear(pair, hidden, bias=False)
        # Batch norm is a constant once exported; a layer norm over every candidate cost half of the head's time.
        self.norm = nn.BatchNorm1d(hidden)
        self.rest = nn.Sequential(nn.ReLU(), Dropout(shape.dropout), nn.Linear(hidden, hidden // 2), nn.ReLU())
        self.out = nn.Linear(hidden // 2, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.gate = nn.Linear(shape.user_dense, SIGNALS)  # how much each signal counts, from what the user is like
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        # What few have played may be new: the line that says what popularity is worth does not hold at its end.
        self.few: Tensor
        self.register_buffer("few", torch.tensor(0.0))  # the popularity from which on a track is not rare
        self.lift = nn.Parameter(torch.tensor(0.0))  # of a track without listeners
        # Both are fitted on the validation fold: how much the deep part counts (0 to 1), and the calibration
        # sigmoid(a * logit + b), a > 0.
        self.strength: Tensor
        self.calibration: Tensor
        self.register_buffer("strength", torch.tensor(1.0))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.moments: MomentHead | None = None  # where single plays tell what comes next

    def forward(
        self,
        user: Tensor,
        user_dense: Tensor,
        user_ids: Tensor,
        vectors: Tensor,
        track_dense: Tensor,
        track_ids: Tensor,
        popularity: Tensor,
        item_item: Tensor,
        signals: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores N tracks for each of B users.

        Args:
            user: (B, D) float32 user vectors.
            user_dense: (B, du) float32.
            user_ids: (B, cu) int64.
            vectors: (B, N, D) float16 or float32 retrieval vectors.
            track_dense: (B, N, dt) float16 or float32.
            track_ids: (B, N, ct) int64.
            popularity: (B, N) float32.
            item_item: (B, N, 2) float32 co-listening scores.
            signals: (B, N, s) float32 of `lhydra.features.moment`, where the head has a part for moments.
            context: (B, c) float32 of the moment, likewise.

        Returns:
            (B, N) float32 logits, and (B, N) float32 calibrated probabilities.
        """
        base, extra = self.parts(user, user_dense, user_ids, vectors, track_dense, track_ids, popularity, item_item)
        logit = base + self.strength * extra
        if self.moments is None:
            return logit, torch.sigmoid(self.calibration[0] * logit + self.calibration[1])
        assert signals is not None
        assert context is not None
        cosine = (vectors.float() @ user.unsqueeze(2)).squeeze(2)
        pair = torch.stack([logit, cosine, popularity, self.rarity(popularity)], 2)
        return self.moments.ranked(logit, pair, signals, context, self.calibration)

    def parts(
        self,
        user: Tensor,
        user_dense: Tensor,
        user_ids: Tensor,
        vectors: Tensor,
        track_dense: Tensor,
        track_ids: Tensor,
        popularity: Tensor,
        item_item: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the raw logit in two parts.

        Args:
            user: as in `forward`, and so are the others.
            user_dense: (B, du).
            user_ids: (B, cu).
            vectors: (B, N, D).
            track_dense: (B, N, dt).
            track_ids: (B, N, ct).
            popularity: (B, N).
            item_item: (B, N, 2).

        Returns:
            (B, N) float32 each: the weighted signals, and what the deep part adds to them at strength 1.
        """
        vectors, track_dense = vectors.float(), track_dense.float()  # a bundle keeps them as halves
        width, crossed = track_dense.shape[2], CROSS_DIM * len(self.pairs)
        cosine = vectors @ user.unsqueeze(2)  # (B, N, 1)
        signals = torch.cat([cosine, popularity.unsqueeze(2), item_item], 2)  # (B, N, SIGNALS)
        sizes = [width, width, width, crossed, SIGNALS]  # of t, p - t, |p - t|, crosses, signals
        of_dense, of_gap, of_distance, crossing, of_signals = torch.split(self.of_pair.weight, sizes, 1)
        first = _of_known(self.of_user, [user, user_dense], self.user_ids, user_ids)  # (B, h)
        own, along, across = [vectors], [user], [self.of_product.weight]
        if self.pairs:
            order = [i for members in self.by_track.values() for i in members]
            asked = torch.tensor([self.pairs[i][0][0] for i in order], device=user_ids.device)
            tables = [self.cross_user.get_submodule(f"{i}").get_parameter("weight") for i in order]
            of_users = _looked_up(tables, user_ids.index_select(1, asked))  # (B, pairs, CROSS_DIM)
            along.append(of_users.flatten(1))
            across.append(crossing.reshape(len(crossing), -1, CROSS_DIM)[:, order].flatten(1))
        for column, members in self.by_track.items():  # pairs that cross the same track column share one lookup
            table = torch.cat([self.cross_track.get_submodule(f"{i}").get_parameter("weight") for i in members], 1)
            own.append(F.embedding(track_ids[:, :, column], table))  # (B, N, CROSS_DIM * members)
        by_user = F.pad(self.of_track.weight, (0, crossed)) + torch.cat(across, 1) * torch.cat(along, 1).unsqueeze(1)
        apart, weights = [signals], [of_signals]
        if width:
            prefers = user_dense[:, self.preference[0] : self.preference[1]]  # (B, dt)
            first = first + prefers @ of_gap.T
            apart += [track_dense, (prefers.unsqueeze(1) - track_dense).abs()]
            weights += [of_dense - of_gap, of_distance]
        layer = torch.cat(own, 2) @ by_user.transpose(1, 2)  # (B, N, h)
        layer = layer + F.linear(torch.cat(apart, 2), torch.cat(weights, 1)) + first.unsqueeze(1)
        deep = self.out(self.rest(self.norm(layer.flatten(0, 1)))).view(popularity.shape[0], -1)  # (B, N)
        return self.weighted(user_dense, signals, self.rarity(popularity)), deep

    def weighted(self, user_dense: Tensor, signals: Tensor, rarity: Tensor) -> Tensor:
        """Computes the linear part of the logit: each signal by the user's own weight for it.

        Args:
            user_dense: (B, du) float32.
            signals: (B, N, SIGNALS) float32: cosine, popularity, co-listening.
            rarity: (B, N) float32 of the popularity.

        Returns:
            (B, N) float32.
        """
        bias = self.gate.bias + F.pad(self.scale.reshape(1), (0, SIGNALS - 1))  # of the cosine
        weights = F.linear(user_dense, self.gate.weight, bias)  # (B, SIGNALS)
        return (signals @ weights.unsqueeze(2)).squeeze(2) + self.lift * rarity

    def linear(self) -> list[nn.Parameter]:
        """Returns the parameters of `weighted`."""
        return [self.scale, self.lift, *self.gate.parameters()]

    def rarity(self, popularity: Tensor) -> Tensor:
        """Tells how few have played a track.

        Args:
            popularity: (B, N) float32.

        Returns:
            (B, N) float32, 1 for a track without listeners, 0 for one that is not rare.
        """
        return F.relu(1 - popularity / self.few.clamp(min=1e-6))


class Network(nn.Module):
    """The three parts, trained together and exported apart.

    Args:
        shape: of the network.
        entry_features: columns of an entry of a history.
    """

    def __init__(self, shape: Shape, entry_features: int) -> None:
        super().__init__()
        self.item_tower = ItemTower(shape)
        self.user_tower = UserTower(shape, entry_features)
        self.head = Head(shape)

    @torch.no_grad()
    def start_from(self, numbers: Tensor, item: Tensor, history: Tensor, user: Tensor) -> None:
        """Starts the towers as a factor model: users are history sums, the ids of tracks stand for their factors.

        Args:
            numbers: (n,) int64 of the track ids, 0 for tracks without one.
            item: (n, f) float32 item factors.
            history: (n, f) float32, whose sums are user factors.
            user: (f,) float32, the mean user, whom users without a history start as.
        """
        self.item_tower.start_from(numbers, item, history)
        last = self.user_tower.profile[-1]
        assert isinstance(last, nn.Linear)
        last.bias[: len(user)] = 0.05 * user
