"""PyramidDrop's vectors: the attention is that of transformers' own Llama layer on the given states."""

from __future__ import annotations

import numpy as np
import torch
from golden_llama import llama_of
from golden_support import Golden, Served, golden, tokens_of
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding, apply_rotary_pos_emb

import vtc
from vtc.models.stock.attention_taps import attention_rows
from vtc.pruners.signals import AttentionAhead


@golden("pyramiddrop")
def check(vector: Golden) -> None:
    meta, draw = vector.meta, vector.rng().standard_normal
    width, length, heads, n, system = (meta[name] for name in ("d", "length", "heads", "n", "system"))
    weights = [draw((width, width), dtype=np.float32) / np.sqrt(width) for _ in range(2)]
    states = torch.from_numpy(draw((1, length, width), dtype=np.float32))
    config = llama_of(meta)
    layer = LlamaDecoderLayer(config, 0)
    with torch.no_grad():
        layer.self_attn.q_proj.weight.copy_(torch.from_numpy(weights[0].astype(np.float32)))
        layer.self_attn.k_proj.weight.copy_(torch.from_numpy(weights[1].astype(np.float32)))
        normed = layer.input_layernorm(states)
        query, key = (
            project(normed).view(1, length, heads, -1).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        rotary = LlamaRotaryEmbedding(config)(states, torch.arange(length)[None])
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        rows = attention_rows(query, key, None, layer.self_attn.scaling, torch.tensor([[length - 1]]))
    pruner = vtc.parse("pyramiddrop")[0]
    keep = int(n * meta["stage0_keep"])  # the authors round down
    source = Served({AttentionAhead(): rows[..., system : system + n]})
    tokens = tokens_of(states[:, system : system + n], keep, source, stage="decoder", layer=8)
    np.testing.assert_allclose(pruner.score(tokens)[0], vector["score"], atol=1e-6)
    assert sorted(pruner.select(tokens, keep)[0].tolist()) == vector["kept_sorted"].tolist()
