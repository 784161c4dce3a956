"""What LangDC's captioner begins as: a copy of the model's own language model, where that is a small Llama."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtc.models.layout.model_parts import Parts
from vtc.models.layout.run_projector import projector_of
from vtc.pruners.trained.captioner import CONFIG

LARGEST = 200_000_000  # weights of a language model that is copied
NEW = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
       "num_key_value_heads": 4, "head_dim": 64}  # fmt: skip
LONGEST = 128  # the paper's


def first_captioner(parts: Parts, last: int, ends: int, pad: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and weights that a new network of ``langdc`` begins with.

    Parameters
    ----------
    parts : Parts
        The model.
    last : int
        The last token of its prompts, which then stands behind what the captioner is shown.
    ends, pad : int
        The token that ends an answer, and the one that fills up.

    Returns
    -------
    sizes, weights : dict
        The weights are none where the language model is no small Llama with plain rotary positions: then the captioner
        is a new one of six layers. Where the model's projector has its form, what it looks through is a copy of that.
    """
    text = parts.lm.config.get_text_config()
    start = text.bos_token_id if isinstance(text.bos_token_id, int) else ends
    words = {"before": [start], "behind": [last], "end": ends, "pad": pad, "longest": LONGEST}
    config = _llama(parts.lm, text)
    model: Any = parts.model
    head = model.get_output_embeddings() if config and hasattr(model, "get_output_embeddings") else None
    if config is None or head is None:
        return {"captioner": {**CONFIG, **NEW, "vocab_size": text.vocab_size}, **words}, {}
    weights = {f"captioner.model.{name}": x for name, x in parts.lm.state_dict().items()}
    weights["captioner.lm_head.weight"] = head.weight
    linear = [m for m in projector_of(parts).modules() if isinstance(m, nn.Linear)]
    if len(linear) == 2 and all(m.bias is not None and m.out_features == text.hidden_size for m in linear):
        for name, module in zip(("first", "second"), linear, strict=True):
            weights |= {f"look.{name}.{key}": x for key, x in module.state_dict().items()}
    return {"captioner": config, **words}, {name: x.detach().float().clone() for name, x in weights.items()}


def _llama(lm: nn.Module, text: Any) -> dict[str, Any] | None:
    """The configuration of a small Llama; None of anything else."""
    rope = getattr(text, "rope_parameters", None) or {}
    plain = text.model_type == "llama" and rope.get("rope_type", "default") == "default" and not text.attention_bias
    if not plain or text.mlp_bias or text.hidden_act != "silu" or sum(p.numel() for p in lm.parameters()) > LARGEST:
        return None
    values = {name: getattr(text, name, None) for name in CONFIG}
    size = values["head_dim"] or text.hidden_size // text.num_attention_heads
    return {**values, "rope_theta": float(rope.get("rope_theta", 10000.0)), "head_dim": size,
            "tie_word_embeddings": False}  # fmt: skip
