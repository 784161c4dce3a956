"""What a tower is given, patch by patch, in the order in which it runs them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from vtc.models.layout.token_patches import window_order

from .rows_of_each_item import TowerGeometry


def pixels_of_patches(x: Tensor, place: TowerGeometry) -> Tensor:
    """`[total, C]`: the pixels of each position, zeros at special tokens.

    Parameters
    ----------
    x : Tensor
        Pictures `[R, 3, H, W]`, or the patches of a packed tower `[total, C]`, whose merge units it may run in another
        order (Qwen2.5-VL: window by window).
    place : TowerGeometry
        The positions.

    Raises
    ------
    NotImplementedError
        If a tower runs another number of positions than its pictures have patches.
    """
    if place.family.packed:
        order = window_order(place.call)
        if order is None:
            return x
        return x.unflatten(0, (-1, place.family.unit(place.call.config)))[order.to(x.device)].flatten(0, 1)
    side = place.tower.config.patch_size
    down, across = (side, side) if isinstance(side, int) else side
    cut = x.unfold(2, down, down).unfold(3, across, across)  # [R, 3, h, w, down, across]
    rows = pad(cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), (0, 0, place.prefix, 0))
    if tuple(rows.shape[:2]) != place.shape:
        raise NotImplementedError(
            f"{type(place.tower).__name__} runs {list(place.shape)} positions of pictures that have "
            f"{list(rows.shape[:2])} patches, so vtc does not know their pixels"
        )
    return rows.flatten(0, 1)
