"""Packed questions behind one picture under p-MoD: each layer processes its share of the visual tokens.

What ``run_packed`` is for the plain model. Which tokens go through a layer depends on no text behind them, so that the
questions of a picture can share it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.eval.train.language.pack_questions import BUNDLED, NO_TARGET, PackedQuestions
from vtc.eval.train.language.packed_llama import _attention, _before
from vtc.eval.train.scenes.vocabulary import BOS_ID, USER_ID
from vtc.pruners.pmod import PModRouters, schedule
from vtc.pruners.primitives.ranking import top_k

PREFIX_WORDS = len(BUNDLED.prefix)


def counts_of(depth: int, patches: int) -> list[int]:
    """Visual tokens that each layer processes, by p-MoD's schedule."""
    return [int(patches * ratio) for ratio in schedule(depth, "shiftedcos", depth - 1)]


def answer_logits(model: nn.Module, projected: Tensor, packed: PackedQuestions, routers: PModRouters) -> Tensor:
    """What the model says at every position that has a target, `[targets, V]`.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The model.
    projected : Tensor
        All projected tokens of each picture, `[B, N, D]`.
    packed : PackedQuestions
        The questions.
    routers : PModRouters
        Of the method.
    """
    language = model.model.language_model
    batch, patches = projected.shape[:2]
    words = language.embed_tokens(torch.tensor([[BOS_ID, USER_ID]] * batch))
    hidden = torch.cat([words, projected, language.embed_tokens(packed.tokens)], dim=1)
    positions = torch.cat([torch.arange(PREFIX_WORDS + patches).expand(batch, -1), packed.positions], dim=1)
    rotary = language.rotary_emb(hidden, position_ids=positions)
    counts = counts_of(len(language.layers), patches)
    for number, (layer, count) in enumerate(zip(language.layers, counts, strict=True)):
        last = number == len(counts) - 1
        hidden = _layer(layer, hidden, rotary, packed.bias, patches, count, routers, number, last)
    found: Tensor = model.lm_head(language.norm(hidden)[packed.targets != NO_TARGET])
    return found


def _layer(
    layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, patches: int, count: int,
    routers: PModRouters, number: int, last: bool,
) -> Tensor:  # fmt: skip
    """One decoder layer on `[B, 2 + N + T, D]`; of the last one the text alone, `[B, T, D]`."""
    end = PREFIX_WORDS + patches
    gate = torch.ones(hidden.shape[:2])
    columns = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
    if count < patches:
        visual = routers(hidden[:, PREFIX_WORDS:end], number)
        gate = torch.cat([gate[:, :PREFIX_WORDS], visual, gate[:, end:]], dim=1)
        chosen = top_k(visual.detach(), count, torch.ones_like(visual, dtype=torch.bool)).sort().values
        columns = torch.cat([columns[:, :PREFIX_WORDS], chosen + PREFIX_WORDS, columns[:, end:]], dim=1)
    at = columns[..., None]
    through = hidden.gather(1, at.expand(-1, -1, hidden.shape[-1]))
    turned = (rotary[0].gather(1, at.expand(-1, -1, rotary[0].shape[-1])),
              rotary[1].gather(1, at.expand(-1, -1, rotary[1].shape[-1])))  # fmt: skip
    head = PREFIX_WORDS + count
    module = layer.self_attn
    attended = module.o_proj(_attention(module, *_before(layer, through, turned), head, bias, text_only=last))
    if last:
        through, at = through[:, head:], at[:, head:]
    through = through + attended
    branch = layer.mlp(layer.post_attention_layernorm(through))
    through = through + gate[..., None].gather(1, at) * branch
    if last:
        return through
    return (hidden * gate[..., None]).scatter(1, at.expand(-1, -1, hidden.shape[-1]), through)
