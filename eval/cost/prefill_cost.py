"""What a prefill costs: FLOPs and KV bytes from the visual tokens that each layer really had, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import nn

from vtc.eval.vlm.encode_once import core_of
from vtc.models.stock.layer_sizes import layer_size
from vtc.models.stock.transformers_api import holds_columns, keeps_state, new_cache


@dataclass(frozen=True)
class Measured:
    """Visual tokens of one sample, as ``model.vtc.report`` gives them.

    ``per_layer`` has one count per decoder layer; ``kept`` is what is left behind the last step. ``asked`` are the
    tokens of a pass over the question alone, where a method reads ``QuestionState``, and ``own`` the FLOPs of a
    method's own network, where it counts them.
    """

    total: int
    kept: int
    per_layer: tuple[int, ...]
    asked: int = 0
    own: int = 0

    @property
    def mean(self) -> float:
        """Visual tokens averaged over the decoder layers."""
        return sum(self.per_layer) / len(self.per_layer)

    @classmethod
    def unpruned(cls, total: int, depth: int) -> Measured:
        """All tokens in all layers."""
        return cls(total, total, (total,) * depth)

    @classmethod
    def from_report(cls, report: Any, sample: int, depth: int) -> Measured:
        """Read the counts of one sample of the batch off a report."""
        spans = [i for i, span in enumerate(report.spans) if span.sample == sample]
        total = sum(len(report.spans[i].columns) for i in spans)
        kept, per_layer = total, [total] * depth
        for step in report.steps:
            here = sum(len(step.kept[i]) for i in spans)
            if step.loan:
                per_layer[step.layer] = here
                continue
            kept = here
            start = step.layer if step.stage == "decoder" else 0
            per_layer[start:] = [kept] * (depth - start)
        return cls(total, kept, tuple(per_layer), report.asked_alone.get(sample, 0), report.own_flops.get(sample, 0))


@dataclass(frozen=True)
class LMCost:
    """Cost model of a dense decoder.

    ``linear`` are the weights that every token of a layer is multiplied with, ``attention`` the width of all query
    heads, ``kv`` the width of keys plus values, each one number per layer; ``head`` are the output layer's weights.
    ``held`` are the most tokens that each layer's cache holds, None where that is all and empty where all hold all.
    """

    linear: tuple[int, ...]
    attention: tuple[int, ...]
    kv: tuple[int, ...]
    head: int
    itemsize: int
    held: tuple[int | None, ...] = ()

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.linear)

    def flops(self, lengths: Sequence[int], asked: int = 0) -> int:
        """FLOPs of a prefill whose layer `l` sees ``lengths[l]`` tokens, a multiply-add counted as two.

        `asked` tokens go through all layers before that, of a question alone.

        Attention counts all ``L * L`` products, as ``torch.utils.flop_counter`` does: kernels that skip the upper
        triangle do half of that part. The output layer runs on the last token.
        """
        per_layer = [
            (linear, width, n)
            for many in (lengths, [asked] * self.depth)
            for linear, width, n in zip(self.linear, self.attention, many, strict=True)
        ]
        return sum(2 * n * linear + 4 * n * n * width for linear, width, n in per_layer) + 2 * self.head

    def kv_bytes(self, lengths: Sequence[int]) -> int:
        """Bytes of the KV cache behind such a prefill."""
        most = self.held or (None,) * self.depth
        held = [n if m is None else min(n, m) for n, m in zip(lengths, most, strict=True)]
        return sum(n * width * self.itemsize for n, width in zip(held, self.kv, strict=True))


def lm_cost(model: nn.Module) -> LMCost:
    """Read the cost model off the language model's layers and configuration.

    Raises
    ------
    NotImplementedError
        For mixtures of experts, whose tokens don't all meet the same weights, and for layers whose work is no product
        of a token with the weights or of two tokens.
    """
    core = core_of(model)
    lm = getattr(core, "language_model", None) or core.text_model
    config = core.config.get_text_config()
    kept = new_cache(config).layers
    _refuse_uncounted(config)
    depth = len(lm.layers)
    heads = [layer_size(config, "num_attention_heads", i) for i in range(depth)]
    # layers that read the keys of others hold none: the last ones, of which the cache has nothing
    own = [not kept or (i < len(kept) and holds_columns(kept[i])) for i in range(depth)]
    attentions = [getattr(layer, "self_attn", None) for layer in lm.layers]
    # of each layer's own attention, since they may differ (Gemma 4), else the configuration's
    widths = [getattr(a, "head_dim", None) or _head_dim(config, i) for i, a in enumerate(attentions)]
    groups = [
        getattr(a, "num_key_value_groups", None) or heads[i] // _kv_heads(config, i) for i, a in enumerate(attentions)
    ]
    return LMCost(
        linear=tuple(map(_weights, lm.layers, own)),
        attention=tuple(n * width for n, width in zip(heads, widths, strict=True)),
        kv=tuple(2 * (n // g) * width * mine for n, g, width, mine in zip(heads, groups, widths, own, strict=True)),
        head=config.vocab_size * config.hidden_size,
        itemsize=next(lm.parameters()).element_size(),
        held=(*map(_most, kept), *(None for _ in range(depth - len(kept)))),
    )


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _refuse_uncounted(config: Any) -> None:
    """Raise NotImplementedError where the formula is not what a text model does."""
    uncounted = {
        "mixture-of-experts language models": any(getattr(config, name, None) for name in EXPERTS),
        "recurrent and convolution layers": keeps_state(config),
        "layers of several streams (AltUp)": getattr(config, "altup_num_inputs", 1) > 1,
    }
    for what, there in uncounted.items():
        if there:
            raise NotImplementedError(f"FLOPs of {what} are not counted")


def _weights(layer: nn.Module, own: bool) -> int:
    """Weights that a token of a layer is multiplied with: without those of keys where it has none of its `own`."""
    unused = () if own else ("k_proj", "v_proj")
    linear = [m for name, m in layer.named_modules() if isinstance(m, nn.Linear) and not name.endswith(unused)]
    return sum(m.in_features * m.out_features for m in linear)


def _head_dim(config: Any, layer: int) -> int:
    heads = layer_size(config, "num_attention_heads", layer)
    return int(layer_size(config, "head_dim", layer) or config.hidden_size // heads)


def _kv_heads(config: Any, layer: int) -> int:
    heads = layer_size(config, "num_attention_heads", layer)
    return int(layer_size(config, "num_key_value_heads", layer) or heads)


def _most(layer: Any) -> int | None:
    """A layer that looks at a window of tokens forgets the older ones; the newest one's place is made when it comes."""
    window = getattr(layer, "sliding_window", None)
    return window - 1 if window else None


class Spread(NamedTuple):
    """Seconds: the median of several readings, the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """What one prompt costs under a cell; None where it could not be measured.

    Attributes
    ----------
    vision_flops, projector_flops, lm_flops, head_flops : int, optional
        Of the tower, the projector, the decoder layers' prefill and the output layer (``count_flops``).
    vision, selection, lm_prefill, prefill, decode : Spread, optional
        Seconds of tower and projector, of choosing and dropping tokens, of the language model's prefill given the
        features (selection included), of all up to the first token, and of each further token.
    peak_memory : int, optional
        Bytes during the prefill; ``memory_of`` says of what: CUDA's allocations, or the resident process.
    repeats : int
        Measured turns behind the seconds.
    images_per_second : Spread, optional
        Of a classifier, whose ``vision`` are the seconds of a whole batch.
    """

    vision_flops: int | None = None
    projector_flops: int | None = None
    lm_flops: int | None = None
    head_flops: int | None = None
    vision: Spread | None = None
    selection: Spread | None = None
    lm_prefill: Spread | None = None
    prefill: Spread | None = None
    decode: Spread | None = None
    peak_memory: int | None = None
    memory_of: str = ""
    repeats: int = 0
    images_per_second: Spread | None = None

    @property
    def whole(self) -> Spread | None:
        """Seconds of everything: up to the first token, or of a tower that stands alone."""
        return self.prefill or (self.vision if self.images_per_second else None)

    @property
    def tower_flops(self) -> int | None:
        """Tower and projector."""
        return None if self.vision_flops is None else self.vision_flops + (self.projector_flops or 0)

    def flat(self) -> dict[str, Any]:
        """Columns of ``summary.csv``."""
        row: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("vision", "selection", "lm_prefill", "prefill", "decode"):
                for end, seconds in zip(("", "_low", "_high"), value or (None, None, None), strict=True):
                    row[f"cost_{f.name}_seconds{end}"] = seconds
            elif f.name == "images_per_second":
                ends = zip(("", "_low", "_high"), value or (), strict=bool(value))
                row |= {f"{f.name}{end}": rate for end, rate in ends}
            else:
                row[f"cost_{f.name}"] = value
        return row
