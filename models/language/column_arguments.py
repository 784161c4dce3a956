"""What of the text model's and the layers' arguments goes along the columns, and is cut with them.

One table for both: an argument is known by what it means (``call_arguments.NAMES``), whatever it is called. A layer
or text model that takes an argument with no entry anywhere is refused when it is wrapped (``refuse_unknown``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtc.models.selection.column_indices import gather_columns
from vtc.models.stock.call_arguments import Call, unknown_arguments
from vtc.models.stock.transformers_api import versions

# the dimension of the columns: from the end, or from the front, where the batch comes first
COLUMN_DIMS: dict[str, int] = {
    "hidden": -2,
    "rotary": -2,
    "positions": -1,
    "per-layer inputs": 1,
    "token types": 1,
}
ALONG = ("per-layer inputs", "token types")  # cut alike at the text model and at each layer


def pick_columns(meaning: str, value: Any, columns: Tensor) -> Any:
    """Columns `columns` `[B, n]` of an argument, which may be a tensor, or several in a tuple or dict, or None."""
    if isinstance(value, Tensor):
        dim = COLUMN_DIMS[meaning]
        return gather_columns(value, columns, dim if dim < 0 else dim - value.dim())
    if isinstance(value, dict):
        return {k: pick_columns(meaning, v, columns) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(pick_columns(meaning, v, columns) for v in value)
    return value


def cut_along(call: Call, columns: Tensor) -> None:
    """Leave only `columns` of what goes along with the embeddings or hidden states of a call."""
    for meaning in ALONG:
        value = call.get(meaning)
        if value is not None:
            call.put(meaning, pick_columns(meaning, value, columns))


def refuse_unknown(module: nn.Module) -> None:
    """Refuse a text model or decoder layer with an argument that vtc does not know.

    Raises
    ------
    NotImplementedError
        It may go along the columns, and would keep those that pruning drops.
    """
    unknown = unknown_arguments(module)
    if unknown:
        raise NotImplementedError(
            f"{type(module).__name__}.forward takes {', '.join(unknown)}, which vtc does not know: it may hold a value "
            "for every token, also for those that pruning drops. Use vtc without this model, or add what the argument "
            f"means to vtc/models/stock/call_arguments.py and column_arguments.py. {versions()}"
        )
