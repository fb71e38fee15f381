"""The sizes of the network: what the features of a dataset and the settings make of them."""

from dataclasses import dataclass

from torch import nn

from lhydra.features.spec import FeatureSpec


@dataclass(frozen=True)
class Shape:
    """Everything that decides the sizes of the network; saved with it."""

    dim: int
    hidden: int
    dropout: float
    track_dense: int
    track_ids: tuple[tuple[str, int], ...]
    bag_size: int
    user_dense: int
    user_ids: tuple[tuple[str, int], ...]
    preference: tuple[int, int]  # where the preference profile lies among the dense user columns

    @classmethod
    def of(cls, spec: FeatureSpec, dim: int, hidden: int, dropout: float) -> "Shape":
        """Makes the shape that fits a feature spec.

        Args:
            spec: its columns decide the widths of the inputs.
            dim: of the vectors.
            hidden: width of the hidden layers; half of it in the head.
            dropout: chance of a zero in the dense layers.

        Returns:
            The shape.
        """
        return cls(
            dim,
            hidden,
            dropout,
            len(spec.track_dense),
            spec.track_ids,
            spec.bag_size,
            len(spec.user_dense),
            spec.user_ids,
            (spec.preference.start, spec.preference.stop),
        )


def width_of(size: int) -> int:
    """Chooses the embedding width of an id column.

    Args:
        size: its values.

    Returns:
        At most 32.
    """
    return min(32, 4 + int(size**0.5))


def embeddings(columns: tuple[tuple[str, int], ...]) -> nn.ModuleList:
    """Makes a table for each id column.

    Args:
        columns: names and numbers of values.

    Returns:
        The tables, in the order of the columns.
    """
    return nn.ModuleList(nn.Embedding(size, width_of(size)) for _, size in columns)
