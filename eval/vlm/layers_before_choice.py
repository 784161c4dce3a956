"""Decoder layers in front of a method's first choice run once per image, and for a question on its own columns only.

A causal layer makes the same of the columns up to the last visual token whatever question follows. A method that reads
the question and chooses before layer K so takes K layers of an image's columns once for all its questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.language.decoder_signals import resolve
from vtc.models.layout.model_parts import locate
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.call_arguments import NAMES, Call, call_of, given
from vtc.models.stock.transformers_api import new_cache, plain_cache
from vtc.models.stock.tripwire import held
from vtc.pipeline_text import parse
from vtc.pruners.base import Loan
from vtc.pruners.signals import (
    AttentionAhead,
    DecoderAttention,
    DecoderHidden,
    DecoderKeys,
    DecoderSignal,
    DecoderValues,
    QuestionState,
    Signal,
)

from .encode_once import core_of
from .pruning_settings import Cell

CUT = ("hidden", "mask", "positions", "rotary")  # what a layer is given of each column
SAME = ("cache", "use cache")
KINDS = ("sdpa", "eager")  # implementations whose masks can be cut, or made


class _Enough(Exception):
    """The layers that are wanted have run."""


def layers_before_choice(cell: Cell, model: nn.Module) -> int:
    """Number of a model's decoder layers that can run once per image under a cell; 0 if none can."""
    config = core_of(model).config.get_text_config()
    if attention_kind(config) not in KINDS:
        return 0
    depth = config.num_hidden_layers
    stops = [(pruner, stop) for pruner in parse(cell.spec) for stop in pruner.stops(depth)]
    if any(stop.stage != "decoder" or isinstance(stop, Loan) for _, stop in stops):
        return 0
    count = min(stop.layer or 0 for _, stop in stops)
    for pruner, stop in stops:
        for signal in pruner.signals_at(stop):
            count = min(count, _whole_from(resolve(signal, stop.layer), count))
    return count


def _whole_from(signal: Signal, count: int) -> int:
    """The first of `count` layers that has to run on all columns, for a signal to be read there."""
    if isinstance(signal, QuestionState):  # the text model runs on other columns then
        return 0
    of_last = isinstance(signal, DecoderAttention) and signal.queries == "last"
    if of_last or not isinstance(signal, DecoderSignal):
        return count
    if isinstance(signal, (DecoderKeys, DecoderValues, DecoderHidden, AttentionAhead)):
        return count
    return signal.layer or 0


@dataclass
class PrefixStates:
    """What the first decoder layers make of the columns up to the last visual token, of some images.

    Attributes
    ----------
    layers : list of nn.Module
        These layers.
    hidden : list of Tensor
        Their outputs, `[I, n, D]` each.
    keys, values : list of Tensor
        `[I, H_kv, n, d]` each.
    """

    layers: list[nn.Module]
    hidden: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Any], count: int) -> PrefixStates:
        """Run the first `count` layers of an unwrapped model.

        Parameters
        ----------
        inputs : mapping
            The composite model's, of one row per image and without padding.
        """
        parts = locate(model)
        cache, hidden = new_cache(parts.lm.config), list[Tensor]()

        def note(layer: nn.Module, args: Any, output: Any) -> None:
            hidden.append(_hidden(output))
            if len(hidden) == count:
                raise _Enough

        layers = list(parts.layers[:count])
        handles = [layer.register_forward_hook(note) for layer in layers]
        try:
            with torch.no_grad(), suppress(_Enough):
                core = core_of(model)
                core(**inputs, **given(core, cache=cache), use_cache=True)
        finally:
            for handle in handles:
                handle.remove()
        kept: list[Any] = cache.layers[:count]
        return cls(layers, hidden, [one.keys for one in kept], [one.values for one in kept])

    @contextmanager
    def stand_in(self, images: Sequence[int], width: int) -> Iterator[None]:
        """Let prefills of `width` columns, without padding, find their prefixes done: row i is about ``images[i]``.

        Whatever else the layers are called for runs as ever.
        """
        rows = torch.tensor(list(images))
        before = [vars(layer).get("forward") for layer in self.layers]

        def bound(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: self._run(i, forward, rows, width, args, kwargs)

        try:
            for i, layer in enumerate(self.layers):
                layer.forward = bound(i, layer.forward)
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                del layer.forward
                if forward is not None:  # accelerate's
                    layer.forward = forward

    def _run(
        self, i: int, forward: Callable[..., Any], rows: Tensor, width: int, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        call = call_of(self.layers[i], args, kwargs)
        if not self._fits(i, call, (len(rows), width)):
            return forward(*args, **kwargs)
        rows = rows.to(self.hidden[i].device)
        prefix = self.hidden[i][rows]
        self._cut(call, prefix.shape[1], width)
        call.get("cache").update(self.keys[i][rows], self.values[i][rows], i)
        output = forward(*call.args, **call.kwargs)
        whole = torch.cat([prefix, _hidden(output)], 1)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _fits(self, i: int, call: Call, shape: tuple[int, int]) -> bool:
        """Whether a layer's call is the prefill that is meant, and has nothing but what ``_cut`` knows to cut."""
        hidden, mask, cache = call.get("hidden"), call.get("mask"), call.get("cache")
        known = {name for meaning in (*CUT, *SAME) for name in NAMES[meaning]}
        more = [v for name, v in call.signature.by_name(call.args, call.kwargs).items() if name not in known]
        return (
            hidden.dim() == 3
            and hidden.shape[:2] == shape
            and self.hidden[i].shape[1] < shape[1]
            and plain_cache(cache)
            and held(cache, i) == 0
            and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 4))
            and not any(isinstance(value, (Tensor, tuple, list)) for value in more)
        )

    @staticmethod
    def _cut(call: Call, start: int, width: int) -> None:
        """Leave a layer's call the columns from `start` on."""
        hidden, mask, positions, rotary = map(call.get, CUT)
        call.put("hidden", hidden[:, start:])
        if mask is None:  # such a one is taken for causal from the first key on
            mask = torch.ones(1, 1, width, width, dtype=torch.bool, device=hidden.device).tril()
        call.put("mask", mask[..., start:, :])
        if isinstance(positions, Tensor):
            call.put("positions", positions[..., start:])
        if rotary is not None:
            call.put("rotary", tuple(x[..., start:, :] for x in rotary))


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
