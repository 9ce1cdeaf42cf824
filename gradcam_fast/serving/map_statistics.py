"""Numbers that say where a map is hot and how widely: their drift shows that a model looks elsewhere than before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MapStatistics", "map_statistics"]

# Cells whose centre is closer to an edge than this share of the side are the border.
BORDER = 1 / 8


class MapStatistics(NamedTuple):
    """Of one map, as a distribution over its cells.

    Attributes:
        entropy: of the distribution, divided by that of an even one: 0 for one hot cell, 1 for a map without contrast.
        border_mass: the share that lies in the border.
        centre_x, centre_y: the centre of mass, from 0 (left, top) to 1.
    """

    entropy: float
    border_mass: float
    centre_x: float
    centre_y: float


def map_statistics(heatmap: NDArray[Any]) -> MapStatistics | None:
    """The statistics of a map (h,w) of values from 0; None if it is all zeros or not finite.

    Example:
        >>> import numpy
        >>> statistics = map_statistics(numpy.array([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]))
        >>> round(statistics.entropy, 6), statistics.border_mass, statistics.centre_x, statistics.centre_y
        (0.333333, 0.0, 0.5, 0.75)
    """
    total = float(heatmap.sum(dtype=numpy.float64))
    if not (0 < total < math.inf):
        return None
    shares = heatmap.astype(numpy.float64) / total
    height, width = shares.shape
    x, y = ((numpy.arange(side) + 0.5) / side for side in (width, height))
    inner = numpy.outer(_is_inner(y), _is_inner(x))
    hot = shares[shares > 0]
    entropy = -float((hot * numpy.log(hot)).sum()) / math.log(shares.size) if shares.size > 1 else 0.0
    return MapStatistics(
        entropy=entropy,
        border_mass=float(shares[~inner].sum()),
        centre_x=float(shares.sum(0) @ x),
        centre_y=float(shares.sum(1) @ y),
    )


def _is_inner(places: NDArray[Any]) -> NDArray[Any]:
    return numpy.minimum(places, 1 - places) >= BORDER
