"""The reference for models with recurrent layers: the untouched model on rows from which dropped columns are absent.

A mask can't hide a token from a state that has taken it up. So the columns are really taken out: the untouched model
runs row by row, without padding and without a cache, and where a step dropped tokens they leave the hidden states in
front of that layer. Layers below it have seen them; the others, recurrent or not, see only what is left, at its
original positions. The tokens that followed are appended, as in ``masked_reference``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import call_of

from .masked_reference import Uncheckable, Vectors, continued, features_given, layer_inputs, longer


def shortened_reference(
    parts: Parts,
    inputs: Mapping[str, Any],
    hidden: Tensor,
    positions: Tensor,
    tokens: Tensor,
    vectors: Vectors | None = None,
    features: Mapping[str, list[Any]] | None = None,
    answered: int = 0,
) -> Tensor:
    """Logits `[B, L + n - 1, V]` as ``masked_reference.reference`` gives them, zeros where there is no column."""
    extra = tokens.shape[1] - 1
    given = continued(inputs, tokens, positions, answered)
    gone = longer(hidden, extra)
    # what the first layer is given are the embeddings
    moved = {max(i, 0): _by_row(longer(where, extra), values) for i, (where, values) in (vectors or {}).items()}
    with features_given(parts.core, features or {}):
        embeds = _merged(parts, given)
    rows = []
    for b, real in enumerate(given["attention_mask"].bool()):
        columns = real.nonzero()[:, 0]
        with ExitStack() as stack:
            own = {i: (where[b, columns], values[b]) for i, (where, values) in moved.items()}
            stack.enter_context(layer_inputs(parts, _Shorten(gone[:, b, columns], own)))
            logits = parts.model(
                inputs_embeds=embeds[b : b + 1, columns],
                attention_mask=torch.ones(1, len(columns), dtype=torch.long),
                position_ids=given["position_ids"][..., b : b + 1, columns],
                use_cache=False,
            ).logits[0]
        row = logits.new_zeros(len(real), logits.shape[-1])
        row[columns[~gone[-1, b, columns]]] = logits
        rows.append(row)
    return torch.stack(rows)


def _by_row(where: Tensor, values: Tensor) -> tuple[Tensor, list[Tensor]]:
    return where, list(values.split(where.sum(1).tolist()))


class _Merged(Exception):
    """Carries the embeddings out of the composite model, which need not go on."""


def _merged(parts: Parts, given: Mapping[str, Any]) -> Tensor:
    """What the untouched composite model gives to its text model, features merged in, `[B, T, D]`."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = call_of(module, args, kwargs)
        if call.get("deepstack") is not None:
            raise Uncheckable(f"{type(module).__name__} gets features beside the embeddings, which are not taken out")
        mask = call.get("mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise Uncheckable(f"{type(parts.core).__name__} makes masks itself, which shorter rows would not get")
        raise _Merged(call.get("embeds"))

    hook = parts.lm.register_forward_pre_hook(look, with_kwargs=True)
    try:
        parts.model(**given, use_cache=False)
    except _Merged as found:
        return found.args[0]
    finally:
        hook.remove()
    raise Uncheckable(f"{type(parts.core).__name__} did not call its text model")


class _Shorten:
    """Takes the columns ``gone[layer]`` `[T]` of one row out of what each decoder layer is called with.

    ``moved[i]`` = (where `[T]` bool, values `[n, D]`): merged tokens, put into the states before layer `i`.
    """

    def __init__(self, gone: Tensor, moved: Mapping[int, tuple[Tensor, Tensor]]):
        self.gone, self.moved = gone, moved

    def __call__(self, i: int, call: Any) -> None:
        states, before = call.get("hidden"), self.gone[max(i - 1, 0)] if i else torch.zeros_like(self.gone[0])
        if i in self.moved:
            where, values = self.moved[i]
            states = states.clone()
            states[:, where[~before]] = values
        left = ~self.gone[i]
        call.put("hidden", states[:, left[~before]])
        rotary, mask, ids = call.get("rotary"), call.get("mask"), call.get("positions")
        if rotary is not None:
            call.put("rotary", tuple(x[..., left, :] for x in rotary))
        if ids is not None:
            call.put("positions", ids[..., left])
        if isinstance(mask, Tensor) and mask.dim() in (2, 4):
            call.put("mask", mask[..., left] if mask.dim() == 2 else mask[..., left, :][..., left])
        elif mask is not None:
            raise Uncheckable(
                f"decoder layer {i} has a mask that columns can't be taken out of ({type(mask).__name__})"
            )
