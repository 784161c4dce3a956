"""A small language model that says what it is shown: a Llama by formula, with the weights' names of transformers'.

So a stock ``LlamaForCausalLM`` can be put into a network's file, and taken out of it, without transformers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
Cache = list[tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):
    """`x` over its root mean square, times a weight."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))
        return found


class Attention(nn.Module):
    """Rotary attention with grouped keys, over what a cache holds and what is new."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, self.size = config["hidden_size"], config["head_dim"]
        of_queries, of_keys = (config[f"num_{name}_heads"] * self.size for name in ("attention", "key_value"))
        self.groups = of_queries // of_keys
        self.q_proj = nn.Linear(width, of_queries, bias=False)
        self.k_proj = nn.Linear(width, of_keys, bias=False)
        self.v_proj = nn.Linear(width, of_keys, bias=False)
        self.o_proj = nn.Linear(of_queries, width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor, cache: Cache, layer: int) -> Tensor:
        """`[S, L, D]` of `x`; `seen` `[S, 1, L, K]` bool. What is new joins the `cache`."""
        q, k, v = (p(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (y * rotary[0] + _turned(y) * rotary[1] for y in (q, k))
        if layer < len(cache):
            k, v = (torch.cat([old, new], 2) for old, new in zip(cache[layer], (k, v), strict=True))
            cache[layer] = k, v
        else:
            cache.append((k, v))
        k, v = (y.repeat_interleave(self.groups, 1) for y in (k, v))
        found: Tensor = self.o_proj(scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))
        return found


def _turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return found


class Layer(nn.Module):
    """Attention and MLP, a norm before each."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config["hidden_size"], config["rms_norm_eps"]) for _ in range(2)
        )

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        """See the class."""
        x = x + self.self_attn(self.input_layernorm(x), *given)
        found: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return found


class Stack(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class Captioner(nn.Module):
    """The language model, ``model`` and ``lm_head`` as transformers call them.

    Parameters
    ----------
    config : mapping
        The values of a ``LlamaConfig`` that ``CONFIG`` names; ``rope_theta`` of plain rotary positions.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = {name: config[name] for name in CONFIG}
        width, words = config["hidden_size"], config["vocab_size"]
        self.model = Stack(config)
        self.lm_head = None if config["tie_word_embeddings"] else nn.Linear(width, words, bias=False)

    @property
    def depth(self) -> int:
        """Its layers."""
        return len(self.model.layers)

    def words(self, ids: Tensor) -> Tensor:
        """Embeddings of `ids`."""
        found: Tensor = self.model.embed_tokens(ids)
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Of the next token, `[..., V]`, of the last layer's states."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return linear(states, weight)

    def forward(self, x: Tensor, there: Tensor, cache: Cache | None = None) -> list[Tensor]:
        """States by layer, embeddings first and the last behind the final norm, `[S, L, D]` each.

        Parameters
        ----------
        x : Tensor
            `[S, L, D]`, the embeddings of what is new.
        there : Tensor
            `[S, K]` bool: which columns there are, of those before and the L new ones.
        cache : list, optional
            Keys and values of the columns before, by layer; gets those of the new ones.
        """
        cache = [] if cache is None else cache
        new, columns = x.shape[1], there.shape[1]
        place = (there.cumsum(1) - 1).clamp(min=0)[:, columns - new :]
        at = torch.arange(columns, device=x.device)
        seen = at[columns - new :, None] >= at
        # a column that is not there sees itself, so that no row of the softmax is empty
        seen = seen & (there[:, None] | (at[columns - new :, None] == at))
        size = self.config["head_dim"]
        exponents = torch.arange(0, size, 2, device=x.device, dtype=x.dtype) / size
        angles = place[:, None, :, None].to(x.dtype) / self.config["rope_theta"] ** exponents
        rotary = torch.cat([angles, angles], -1)
        given = (rotary.cos(), rotary.sin()), seen[:, None], cache
        states = [x]
        for i, layer in enumerate(self.model.layers):
            states.append(layer(states[-1], *given, i))
        states[-1] = self.model.norm(states[-1])
        return states

    def say(self, shown: Tensor, there: Tensor, longest: int, layer: int, end: int, pad: int) -> tuple[Tensor, Tensor]:
        """Caption what is shown, greedily, until all have ended or there are `longest` tokens.

        Returns
        -------
        states : Tensor
            `[S, T, D]`: what each step ends with at its last place in this `layer`, see ``caption_states``.
        ids : Tensor
            `[S, T]`: what was said, `pad` behind the end. `pad` is never said.
        """
        cache: Cache = []
        found, said = [], []
        done = torch.zeros(len(shown), dtype=torch.bool, device=shown.device)
        x = shown
        for _ in range(longest):
            states = self(x, there, cache)
            found.append(states[layer][:, -1])
            logits = self.logits(states[-1][:, -1])
            logits[:, pad] = float("-inf")
            token = logits.argmax(-1).masked_fill(done, pad)
            said.append(token)
            done = done | (token == end)
            if bool(done.all()):
                break
            x, there = self.words(token)[:, None], torch.cat([there, torch.ones_like(there[:, :1])], 1)
        return torch.stack(found, 1), torch.stack(said, 1)

    def flops(self, prompt: int, steps: int) -> int:
        """FLOPs of a prompt of so many tokens and of `steps` tokens said, a multiply-add counted as two."""
        read = prompt + max(0, steps - 1)
        pairs = prompt * prompt + sum(prompt + i for i in range(1, steps))
        layers = sum(p.numel() for layer in self.model.layers for p in layer.parameters() if p.dim() == 2)
        attention = self.depth * self.config["num_attention_heads"] * self.config["head_dim"]
        head = self.config["vocab_size"] * self.config["hidden_size"]
        return 2 * read * layers + 4 * pairs * attention + 2 * steps * head
