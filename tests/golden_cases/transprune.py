"""TransPrune's vectors: sublayers' inputs and outputs as drawn, and the attention of transformers' own Llama layer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from golden_llama import llama_of
from golden_support import Golden, Served, golden, tokens_of
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding, apply_rotary_pos_emb

import vtc
from vtc.models.language.decoder_signals import capture_transition
from vtc.models.stock.attention_taps import attention_rows
from vtc.pruners.signals import AttentionAhead, DecoderTransition


def transitions(layer: int, states: list[Tensor]) -> dict[DecoderTransition, Tensor]:
    """What the host captures of a layer whose attention and MLP turn `states` 0 into 1, and 2 into 3: `[1, L, 2]`."""
    slots = torch.arange(states[0].shape[1])[None]
    run = SimpleNamespace(slots=slots, prompt=None, captured={}, current=lambda: slots)
    found = {}
    for block, (x, y) in {"attention": states[:2], "mlp": states[2:]}.items():
        signal = DecoderTransition(layer, block=block)
        capture_transition(run, [signal], x, y)
        found[signal] = run.captured[signal][0]
    return found


@golden("transprune")
def check(vector: Golden) -> None:
    meta, draw = vector.meta, vector.rng().standard_normal
    width, heads, system, n, text = (meta[name] for name in ("d", "heads", "system", "n", "text"))
    config = llama_of(meta)
    layer = LlamaDecoderLayer(config, 0)
    projections = layer.self_attn.q_proj, layer.self_attn.k_proj
    with torch.no_grad():
        for projection in projections:
            weight = draw((width, width), dtype=np.float32) / np.sqrt(width)
            projection.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
        norm = 1 + 0.1 * draw(width, dtype=np.float32)
        layer.input_layernorm.weight.copy_(torch.from_numpy(norm.astype(np.float32)))

    pruner = vtc.parse("transprune", ratios=tuple(meta["ratios"]))[0]
    left, depth, reads = n, 0, {}
    for stage, (ratio, layers) in enumerate(zip(meta["ratios"], meta["layers_per_stage"], strict=True)):
        length, visual = system + left + text, slice(system, system + left)

        def states(length: int = length) -> Tensor:
            return torch.from_numpy(draw((1, length, width), dtype=np.float32))

        for _ in range(layers):
            drawn = [states() for _ in range(4)]
            drawn[1] = 0.5 * drawn[1] + 0.3 * drawn[0]
            found = transitions(depth, drawn)
            if not depth:
                ttv = sum(x.prod(-1) for x in found.values())
                np.testing.assert_allclose(ttv[0], vector["first_layer_ttv_all_tokens"], atol=1e-6)
            reads |= {signal: values[:, visual] for signal, values in found.items()}
            depth += 1
        features = states()
        with torch.no_grad():
            normed = layer.input_layernorm(features)
            query, key = (p(normed).view(1, length, heads, -1).transpose(1, 2) for p in projections)
            rotary = LlamaRotaryEmbedding(config)(features, torch.arange(length)[None])
            query, key = apply_rotary_pos_emb(query, key, *rotary)
            rows = torch.arange(length - text, length)[None]
            attention = attention_rows(query, key, None, layer.self_attn.scaling, rows)[..., visual]
        source = Served({**reads, AttentionAhead(queries="text"): attention}, behind=torch.ones(1, text).bool())
        keep = int(n * ratio)  # the authors round down
        tokens = tokens_of(features[:, visual], keep, source, stage="decoder", layer=depth)
        for name, alpha in (("ttv_norm", 1.0), ("iga_norm", 0.0)):
            [alone] = vtc.parse("transprune", alpha=alpha)
            np.testing.assert_allclose(alone.score(tokens)[0], vector[f"s{stage}_{name}"], atol=1e-6)
        np.testing.assert_allclose(2 * pruner.score(tokens)[0], vector[f"s{stage}_score"], atol=1e-6)
        kept = pruner.select(tokens, keep)[0].sort().values
        assert kept.tolist() == vector[f"s{stage}_kept_local_sorted"].tolist()
        reads = {signal: values[:, kept] for signal, values in reads.items()}
        left = keep
