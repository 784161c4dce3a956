"""What a model loses without one head of its first decoder layer, and what that makes of the heads' weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.eval.inspect.horizon import answer_token
from vtc.eval.vlm.encode_once import encode, encoder_inputs, reuses_encoder, to_device
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import Row
from vtc.models.layout.model_parts import locate

OUT = "o_proj"  # what an attention's output projection is called in transformers


def heads_of(model: nn.Module) -> int:
    """Attention heads of a decoder layer."""
    return int(locate(model).lm.config.get_text_config().num_attention_heads)


@contextmanager
def without_head(model: nn.Module, head: int | None) -> Iterator[None]:
    """Run a model whose first decoder layer gets nothing from its `head`; None: as it is.

    Raises
    ------
    NotImplementedError
        For a layer without an attention whose output can be told apart by heads.
    """
    layer: Any = locate(model).layers[0]
    out = getattr(getattr(layer, "self_attn", None), OUT, None)
    if not isinstance(out, nn.Module):
        raise NotImplementedError(
            f"{type(layer).__name__} has no self_attn.{OUT}, so what its heads give can't be told apart: use hawk "
            "without weights"
        )
    count = heads_of(model)

    def silence(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        apart = args[0].unflatten(-1, (count, -1)).clone()
        apart[..., head, :] = 0
        return (apart.flatten(-2), *args[1:])

    handles = [] if head is None else [out.register_forward_pre_hook(silence)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def lost(loaded: Loaded, row: Row) -> Tensor:
    """How much less likely the true answer's first token is without each head, `[H]` float32.

    Parameters
    ----------
    loaded : Loaded
        The plain model and its processor.
    row : Row
        The question with its picture and true answer.
    """
    model = loaded.model
    seen = encoder_inputs([row], [encode(model, row)], model) if row.visual and reuses_encoder(model) else row.vision
    inputs = {name: to_device(value, model) for name, value in {**row.text, **seen}.items()}

    def logits(head: int | None) -> Tensor:
        with without_head(model, head):
            found: Tensor = model(**inputs, use_cache=False).logits[0, -1].float().cpu()
        return found

    whole = logits(None)
    answer = answer_token(loaded.processor, row.question.answer, whole)
    rest = torch.stack([logits(head).softmax(-1)[answer] for head in range(heads_of(model))])
    return whole.softmax(-1)[answer] - rest


def weights_of(drops: Tensor) -> Tensor:
    """Weights `[H]`, which sum to 1, of what `S` sets of questions lost without each head, `drops [S, H]`.

    ``w_h = mean_s (d_sh - min_h d_sh) / sum_h (d_sh - min_h d_sh)`` over the sets to which heads are not all alike.

    Raises
    ------
    ValueError
        If there is none of these.
    """
    above = drops.double() - drops.double().amin(1, keepdim=True)
    total = above.sum(1, keepdim=True)
    some = total[:, 0] > 0
    if not some.any():
        raise ValueError("no head changes any answer of these questions, so nothing is told about heads")
    return (above[some] / total[some]).mean(0).float()
