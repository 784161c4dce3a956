"""The stock processor of every model type that ``vtc check`` knows how to feed."""

from __future__ import annotations

from .of_grids import GRIDS
from .of_others import OTHERS
from .of_squares import SQUARES
from .of_tiles import TILED

STOCK = {**SQUARES, **GRIDS, **TILED, **OTHERS}
