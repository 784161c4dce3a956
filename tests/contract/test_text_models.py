"""Every kind of text model inside a VLM: windows in some layers, in none, unused; ropes by kind of layer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers as tf
from contracts import TOLERANCE
from looking_ahead import Look, rows_equal
from methods import BOTH_STAGES, READING, TWO_LAYERS, Setting
from reference import allowed, greedy, kept_at_end, record_positions, reference
from torch import nn
from versions import ENCODES_FIRST, known
from zoo import prompt
from zoo.models import TEXT, build, clip
from zoo.tokens import IMAGE

import vtc
from vtc.eval.check.masked_reference import hidden_per_layer
from vtc.eval.check.shortened_reference import shortened_reference
from vtc.models.layout.model_parts import locate

pytestmark = pytest.mark.usefixtures("no_grad")
SHORT = {"sliding_window": 9}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"] * 2
NEW = 6
IMPLEMENTATION = {"gemma2": "eager", "gpt_oss": "eager", "granite_swa": "eager"}  # these have no sdpa
# by model_type: what makes it tiny, with a window shorter than the prompt wherever it knows one
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "cohere2": SHORT,
    "exaone4": {**SHORT, "head_dim": 16, "sliding_window_pattern": 3, "layer_types": MIXED},
    "exaone_moe": {**SHORT, **EXPERTS, "head_dim": 16, "layer_types": MIXED, "num_experts": 4, "n_group": 1,
                   "topk_group": 1, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 3, "num_shared_experts": 1},
    "gemma2": {**SHORT, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {**SHORT, "head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": MIXED},
    "gpt_neox": {},
    "gpt_oss": {**SHORT, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite_swa": {**SHORT, "layer_types": MIXED, "layer_rope_theta": [1e4, 0, 1e5] * 2, "attention_multiplier": 0.25},
    "ministral": {**SHORT, "head_dim": 16, "layer_types": MIXED},
    "ministral3": {"head_dim": 16, "sliding_window": None, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8}},
    "mixtral": {**SHORT, "num_local_experts": 4},
    "olmo3": SHORT,
    "phi3": SHORT,
    "qwen2": {**SHORT, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3": {**SHORT, "head_dim": 16, "use_sliding_window": False},
    "smollm3": {**SHORT, "use_sliding_window": True, "layer_types": MIXED},
    "starcoder2": SHORT,
}  # fmt: skip
LATENT = {**EXPERTS, "num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts": 4}  # fmt: skip
TWO_PATHS = {"mamba_d_state": 16, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2, "mamba_chunk_size": 8}
REFUSED: dict[str, dict[str, Any]] = {
    "falcon_h1": {**TWO_PATHS, "mamba_d_ssm": 128},  # attention and a state in each layer
    "llama4_text": {**EXPERTS, "head_dim": 16, "attention_chunk_size": 8, "intermediate_size_mlp": 96,
                    "num_local_experts": 2, "num_experts_per_tok": 1},
    # two attentions in each layer
    "longcat_flash": {**LATENT, "q_lora_rank": 16, "num_layers": 3, "moe_topk": 2, "n_routed_experts": 4,
                      "expert_ffn_hidden_size": 32, "ffn_hidden_size": 96, "num_hidden_layers": 6},
    # a cache of its own
    "minimax": {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"] * 3},
    "recurrent_gemma": {"attention_window_size": 9, "lru_width": 64},
    "xglm": {"d_model": 64, "attention_heads": 4, "num_layers": 6, "ffn_dim": 96},
}  # fmt: skip
KINDS = ["linear_attention", "full_attention", "linear_attention"] * 2
DELTA = {"layer_types": KINDS, "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16}  # fmt: skip
KDA = {**LATENT, "num_shared_experts": 1, "num_experts_per_token": 2, "num_expert_group": 1, "topk_group": 1,
       "layer_types": KINDS, "mlp_layer_types": ["dense", "sparse"] * 3, "linear_head_dim": 16, "linear_num_heads": 4,
       "linear_conv_kernel_dim": 4}  # fmt: skip
OWN_CACHE = ("jamba", "olmo_hybrid")  # on 5.5.0
RECURRENT: dict[str, dict[str, Any]] = {
    "bailing_hybrid": KDA,
    "bamba": {**TWO_PATHS, "attn_layer_indices": [1, 4]},  # its layers give pairs
    "granitemoehybrid": {**TWO_PATHS, "layer_types": ["mamba", "attention", "mamba"] * 2, "num_local_experts": 2,
                         "shared_intermediate_size": 32, "attention_multiplier": 0.25},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {**KDA, "rope_parameters": None},
    "lara_mini": {**DELTA, **EXPERTS, **SHORT, "head_dim": 16, "num_experts": 2, "shared_expert_intermediate_size": 32,
                  "layer_types": ["sliding_attention", "linear_attention", "full_attention", *MIXED[:3]]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"] * 2, "block_multiple_of": 8},
    "olmo_hybrid": DELTA,
    "qwen3_next": {**EXPERTS, "head_dim": 16, "num_experts": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 4,
                   "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 32},
}  # fmt: skip


@lru_cache(maxsize=2)
def llava_over(kind: str, impl: str) -> nn.Module:
    """LLaVA's tower and projector before another text model."""
    text = tf.AutoConfig.for_model(known(kind), **{**TEXT, **(TEXT_MODELS | REFUSED | RECURRENT)[kind]})
    config = tf.LlavaConfig(vision_config=clip(), text_config=text, image_token_id=IMAGE)
    return build(tf.LlavaForConditionalGeneration, config, impl)


def agrees(setting: Setting, kind: str, impl: str) -> None:
    """Prefill and greedy tokens are those of the stock model under eager attention with what went masked."""
    inputs = prompt("llava", "ragged").inputs
    width = inputs["input_ids"].shape[1]
    stock, model = llava_over(kind, "eager"), llava_over(kind, impl)
    _, positions = record_positions(stock, inputs, NEW)
    with vtc.compressed(model, setting.pruner):
        first = model(**inputs, position_ids=positions[:, :width]).logits
        generated, report = greedy(model, inputs, NEW), model.vtc.report
    logits = reference(stock, inputs, report, positions, generated.tokens)
    kept = kept_at_end(report, inputs["attention_mask"], 6)
    assert (first - logits[:, :width])[kept].abs().max() < TOLERANCE
    assert (generated.logits - logits[:, width - 1 :]).abs().max() < TOLERANCE
    assert torch.equal(allowed(logits[:, width - 1 :]).argmax(-1), generated.tokens)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_pruned_equals_masked(kind: str) -> None:
    for setting in (BOTH_STAGES, TWO_LAYERS):
        agrees(setting, kind, IMPLEMENTATION.get(kind, "sdpa"))


@pytest.mark.parametrize("setting", [READING, Setting("pyramiddrop(keep=0.4)")], ids=str)
@pytest.mark.parametrize("kind", ["cohere2", "gemma3_text", "ministral3"])
def test_methods_that_read_attention(kind: str, setting: Setting) -> None:
    agrees(setting, kind, "sdpa")


@pytest.mark.parametrize("kind", ["exaone4", "olmo3", "qwen3"])
def test_attention_ahead_is_the_layers_own_wherever_it_norms(kind: str) -> None:
    """Exaone 4 and Olmo 3 norm behind their attention, and have nothing in front of it."""
    inputs, look = prompt("llava", "ragged").inputs, Look()
    model = llava_over(kind, "sdpa")
    assert hasattr(model.model.language_model.layers[3], "input_layernorm") == (kind == "qwen3")
    with vtc.compressed(model, look):
        model(**inputs)
        report = model.vtc.report
    rows_equal(look, report, llava_over(kind, "eager")(**inputs, output_attentions=True).attentions[3])
    agrees(Setting("pyramiddrop(keep=0.4)"), kind, "sdpa")


def test_a_window_changed_after_wrapping() -> None:
    """The stock model reads its window at every forward, and so do the masks that vtc makes."""
    inputs = prompt("llava", "one").inputs
    stock, model = llava_over("mixtral", "eager"), llava_over("mixtral", "sdpa")
    before = model.model.language_model.config.sliding_window
    with vtc.compressed(model, TWO_LAYERS.pruner):
        narrow = model(**inputs, use_cache=False).logits
        for net in (stock, model):
            net.model.language_model.config.sliding_window = 14
        wide, report = model(**inputs, use_cache=False).logits, model.vtc.report
    truth = reference(stock, inputs, report, torch.arange(64)[None], torch.zeros(1, 1, dtype=torch.long))
    kept = kept_at_end(report, inputs["attention_mask"], 6)
    assert (wide - truth)[kept].abs().max() < TOLERANCE
    assert (wide - narrow)[kept].abs().max() > 1e-3
    for net in (stock, model):
        net.model.language_model.config.sliding_window = before


@pytest.mark.parametrize("pruner", ["random(keep=0.5)", "random(layer=2, keep=0.5)"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_text_models_are_as_without_the_columns(kind: str, pruner: str) -> None:
    inputs = prompt("llava", "ragged").inputs
    valid, stock, model = inputs["attention_mask"].bool(), llava_over(kind, "eager"), llava_over(kind, "sdpa")
    if kind in OWN_CACHE and not ENCODES_FIRST:
        with pytest.raises(NotImplementedError, match="cache"):
            vtc.compress(model, pruner)
        return
    rows, width = valid.shape
    positions = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1).cumsum(1).sub(1).clamp(min=0)
    with vtc.compressed(model, pruner):
        first = model(**inputs, position_ids=positions[:, :width]).logits
        generated, report = greedy(model, inputs, NEW), model.vtc.report
    hidden = hidden_per_layer(report, rows, width, 6)
    logits = shortened_reference(locate(stock), inputs, hidden, positions, generated.tokens)
    # Qwen3-Next's own batch is as far from its rows alone, in float64 too: its recurrence runs in float32
    whole = shortened_reference(locate(stock), inputs, torch.zeros_like(hidden), positions, generated.tokens)[:, :width]
    plain = model(**inputs, position_ids=positions[:, :width], use_cache=False).logits
    limit = max(TOLERANCE, 4 * float((plain - whole)[valid].abs().max()))
    shows = valid & ~hidden[-1]
    assert limit < 0.05 * float((plain - logits[:, :width])[shows].abs().max())
    assert (first - logits[:, :width])[shows].abs().max() < limit
    assert (generated.logits - logits[:, width - 1 :]).abs().max() < limit


@pytest.mark.parametrize("kind", REFUSED)
def test_text_models_that_vtc_cannot_follow_are_refused_when_wrapped(kind: str) -> None:
    model = llava_over(kind, "eager")
    with pytest.raises(NotImplementedError, match=r"decoder layer|in its cache|cache of its own|does not know"):
        vtc.compress(model, "random", keep=0.5)
    assert not hasattr(model, "vtc")
