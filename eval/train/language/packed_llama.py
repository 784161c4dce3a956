"""A Llama forward pass for packed questions: the image is read once for all of them.

It computes what ``LlamaModel`` computes on each question alone, on the same modules, but image
tokens attend only to image tokens, and the last layer is run for the text alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

_CHUNKS = 4
_FAR = -1e4


class Watcher(Protocol):
    """Looks on while the layers run."""

    def see(self, layer: int, row: int, weights: Tensor) -> None:
        """The attention of a row's text in a layer, `[heads, text, prefix + text]`."""

    def passed(self, layer: int, states: Tensor) -> None:
        """The text's states behind a layer, `[batch, text, width]`."""


def run_packed(
    model: nn.Module,
    prefix: Tensor,
    prefix_positions: Tensor,
    text: Tensor,
    text_positions: Tensor,
    text_bias: Tensor,
    compiled: bool = False,
    watcher: Watcher | None = None,
) -> Tensor:
    """Return the final hidden states of the text tokens.

    Parameters
    ----------
    model : LlamaModel
        The language model.
    prefix : Tensor
        Embeddings of ``<s> USER:`` and the image tokens [batch, prefix length, width].
    prefix_positions : Tensor
        Their positions [batch, prefix length].
    text : Tensor
        Embeddings of all questions [batch, text length, width].
    text_positions : Tensor
        Their positions [batch, text length].
    text_bias : Tensor
        Additive mask between text tokens [batch, text length, text length].
    compiled : bool
        Compile what is beside the attention of a layer: a fifth to a third less time, and a minute at first.
    watcher : Watcher, optional
        Is shown every layer but the last.
    """
    before, behind = (_compiled(_before), _compiled(_behind)) if compiled else (_before, _behind)
    length = prefix.shape[1]
    hidden = torch.cat([prefix, text], dim=1)
    positions = torch.cat([prefix_positions, text_positions], dim=1)
    rotary = model.rotary_emb(hidden, position_ids=positions)
    layers = list(model.layers)
    for number, layer in enumerate(layers[:-1]):
        heads = before(layer, hidden, rotary)
        seen = None if watcher is None else functools.partial(watcher.see, number)
        attended = _attention(layer.self_attn, *heads, length, text_bias, text_only=False, see=seen)
        hidden = behind(layer, hidden, attended)
        if watcher is not None:
            watcher.passed(number, hidden[:, length:])
    last = layers[-1]
    attended = _attention(last.self_attn, *before(last, hidden, rotary), length, text_bias, text_only=True)
    return model.norm(behind(last, hidden[:, length:], attended))


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _before(layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, scaled, keys and values of each head."""
    module = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, module.head_dim)
    query, key, value = (
        projection(normed).view(shape).transpose(1, 2) for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    return (query * module.scaling).to(value.dtype), key.to(value.dtype), value


def _behind(layer: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    """What the layer makes of its hidden states and of what its heads gathered."""
    hidden = hidden + layer.self_attn.o_proj(attended)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_length: int,
    text_bias: Tensor,
    text_only: bool,
    see: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for row, (q, k, v, bias) in enumerate(zip(query, key, value, text_bias, strict=True)):
        pieces = [] if text_only else _causal(q, k, v, prefix_length)
        weights = _text_weights(q, k, prefix_length, bias.to(v.dtype))
        if see is not None:
            see(row, weights)
        pieces.append(weights @ v)
        outputs.append(torch.cat(pieces, dim=1))
    return torch.stack(outputs).transpose(1, 2).flatten(2)


def _causal(query: Tensor, key: Tensor, value: Tensor, length: int) -> list[Tensor]:
    """Causal attention among the first ``length`` tokens, in blocks that skip the future."""
    edges = [round(length * i / _CHUNKS) for i in range(_CHUNKS + 1)]
    pieces = []
    for start, end in itertools.pairwise(edges):
        if start == end:
            continue
        scores = query[:, start:end] @ key[:, :end].transpose(-1, -2)
        future = torch.full((end - start, end), _FAR, dtype=scores.dtype).triu(start + 1)
        pieces.append(torch.softmax(scores + future, dim=-1) @ value[:, :end])
    return pieces


def _text_weights(query: Tensor, key: Tensor, prefix_length: int, bias: Tensor) -> Tensor:
    query = query[:, prefix_length:]
    to_image = query @ key[:, :prefix_length].transpose(-1, -2)
    to_text = query @ key[:, prefix_length:].transpose(-1, -2) + bias
    return torch.softmax(torch.cat([to_image, to_text], dim=-1), dim=-1)
