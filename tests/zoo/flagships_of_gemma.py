"""Flagships of the Gemma families, at their true sizes.

Gemma 3n E4B is the default of its configuration class; the others are written from memory.
"""

from __future__ import annotations

from functools import partial

from .flagship import Flagship
from .flagship_pictures import gemma4, tiles
from .sizes import SO400M

GEMMA4_TOWER = {**SO400M, "num_key_value_heads": 16, "head_dim": 72, "standardize": True}
GEMMA4 = {
    "num_global_key_value_heads": 4,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
}

GEMMA = {
    "gemma-4-31b": Flagship(
        "gemma4",
        31.27,
        {
            "vision_config": GEMMA4_TOWER,
            "text_config": {
                **GEMMA4,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 60,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
            },
        },
        gemma4,
    ),
    "gemma-4-26b-a4b": Flagship(
        "gemma4",
        25.81,
        {
            "vision_config": GEMMA4_TOWER,
            "text_config": {
                **GEMMA4,
                "hidden_size": 2816,
                "intermediate_size": 2112,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "num_global_key_value_heads": 2,
                "enable_moe_block": True,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
            },
        },
    ),
    "gemma-4-e4b": Flagship(
        "gemma4",
        7.63,
        {
            "vision_config": {"use_clipped_linears": True},
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 42,
                "num_key_value_heads": 2,
                "num_kv_shared_layers": 18,
            },
        },
        gemma4,
        run={"num_hidden_layers": 18, "num_kv_shared_layers": 6},
    ),
    "gemma-3n-e4b": Flagship(
        "gemma3n",
        7.82,
        picture=partial(tiles, 1, 768, 256),
        run={"num_hidden_layers": 15, "num_kv_shared_layers": 5},
    ),
}
