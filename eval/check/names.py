"""The attentions and settings of a check, by the names that ``vtc check`` knows them by."""

from __future__ import annotations

ATTENTIONS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2"}
STAGES = {
    "vision": "random(at=vision, layer=1, keep=0.5, seed=3)",
    "input": "random(keep=0.5, seed=5)",
    "decoder": "random(layer=2, keep=0.5, seed=1)",
    "pipeline": "uniform(keep=0.8) + dart(layer={}, keep=0.6) + fastv(layer={}, keep=0.3)",
}
