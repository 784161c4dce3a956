"""The hooks of the decoder layers: pruning before a layer, signals for it, and what the layer is given then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import Peek, is_pruned, refuse_keyless, refuse_other_places
from vtc.models.layout.model_parts import Parts
from vtc.models.selection.column_indices import gather_columns, main_stream
from vtc.models.stock.attention_taps import attention_rows
from vtc.models.stock.attention_windows import ATTENTION, Windows
from vtc.models.stock.call_arguments import Call, call_of, need
from vtc.models.stock.shared_keys import key_sources
from vtc.models.stock.spread_over_processes import every_head
from vtc.models.stock.transformers_api import keeps_state
from vtc.models.stock.tripwire import check_attention, check_columns
from vtc.pruners.base import Loan, Pruner, Stop
from vtc.pruners.signals import (
    AttentionAhead,
    DecoderAttention,
    DecoderHidden,
    DecoderKeys,
    DecoderSignal,
    DecoderTransition,
    DecoderValues,
    Signal,
)

from .column_arguments import refuse_unknown
from .decoder_signals import capture_attention, capture_hidden, capture_transition, last_reads, query_columns
from .forward_state import Run
from .narrowed_calls import LayerCalls
from .run_and_report_step import Steps
from .thread_state import Local

SUBLAYERS = {"attention": "self_attn", "mlp": "mlp"}  # what they are called in a layer of transformers


class _Seen(Exception):
    """A look ahead has what it came for."""


class DecoderSide:
    """Hook bodies of the decoder layers; ``Adapter`` says where they go.

    Parameters
    ----------
    parts : Parts
        The model's parts.
    stops : list of (Pruner, Stop)
        In forward order; those of the decoder stage count.
    signals : set of Signal
        Declared by the pruners, layers resolved.
    steps : Steps
        Runs and reports a pruning step.
    local : Local
        Per-thread state.
    """

    def __init__(
        self, parts: Parts, stops: list[tuple[Pruner, Stop]], signals: set[Signal], steps: Steps, local: Local
    ):
        self.parts, self.steps, self.local = parts, steps, local
        self.plan: Callable[[int, Tensor], None] = lambda first, hidden: None  # set by who plans layers ahead
        self.lend: Callable[[Run, int, Tensor], Tensor] = lambda run, i, hidden: hidden  # set by who runs loans
        self.stops: dict[int, list[tuple[Pruner, Stop]]] = {}
        for entry in stops:
            if entry[1].stage == "decoder" and not isinstance(entry[1], Loan):
                self.stops.setdefault(entry[1].layer or 0, []).append(entry)
        self.lends = frozenset(stop.layer or 0 for _, stop in stops if isinstance(stop, Loan))
        # by the layer that gives them, sorted out once
        self.hidden: dict[int, list[DecoderHidden]] = {}
        self.attended: dict[int, list[DecoderSignal]] = {}
        self.changed: dict[tuple[int, str], list[DecoderTransition]] = {}
        for signal in signals:
            if isinstance(signal, DecoderHidden):
                self.hidden.setdefault(signal.layer or 0, []).append(signal)
            elif isinstance(signal, (DecoderAttention, DecoderKeys, DecoderValues, AttentionAhead)):
                self.attended.setdefault(signal.layer or 0, []).append(signal)
            elif isinstance(signal, DecoderTransition):
                self.changed.setdefault((signal.layer or 0, signal.block), []).append(signal)
        self.done = last_reads(stops)
        # attention beside recurrent layers may know no positions (Nemotron-H)
        rotary = () if keeps_state(parts.lm.config) else ("rotary",)
        for layer in parts.layers:
            need(layer, "hidden", "mask", *rotary)
            refuse_unknown(layer)
        refuse_other_places(parts.lm, parts.layers)
        self.windows = Windows(parts.lm, parts.layers)
        self.sources = key_sources(parts.lm, parts.layers)
        self.attending = self.windows.attending()
        self.calls = LayerCalls(parts.lm, parts.layers, self.windows, self.sources)
        refuse_keyless(parts.lm, [i for i in self.attending if self.sources[i] == i])
        self.calibrating = next((p.spoken_name for p, _ in stops if p.calibrates), "")
        if self.calibrating and (rotary == () or any(source != i for i, source in enumerate(self.sources))):
            raise NotImplementedError(
                f"{self.calibrating} adds to the attention of each layer's own keys, and some layers of "
                f"{type(parts.lm).__name__} keep a state, or read the keys of others"
            )
        self._refuse_behind_shared_keys()
        self._refuse_merging()

    def _refuse_behind_shared_keys(self) -> None:
        """Refuse to drop tokens whose keys later layers would go on reading."""
        readers = [i for i, source in enumerate(self.sources) if source != i]
        first = min((self.sources[i] for i in readers), default=len(self.sources))
        late = [i for i in self.stops if i > first]
        if late:
            raise NotImplementedError(
                f"decoder layers {readers[0]} to {readers[-1]} of {type(self.parts.lm).__name__} have no keys of their "
                f"own and read those of layer {first} and later ones, so nothing can be dropped before layer "
                f"{late[0]}: prune at layer {first} or before it"
            )

    def _refuse_merging(self) -> None:
        """Refuse to write merged vectors where a token has several hidden states."""
        merging = [p for entries in self.stops.values() for p, _ in entries if p.merges]
        if merging and self.windows.streams > 1:
            raise NotImplementedError(
                f"{merging[0].name} writes new vectors into the hidden states, and {type(self.parts.lm).__name__} has "
                f"{self.windows.streams} of them for each token between its layers: use it at the input, or a method "
                "that only drops tokens"
            )

    def tapped_layers(self) -> list[int]:
        """Decoder layers whose attention must be seen."""
        for i, signals in self.attended.items():
            has = [n for n in self.attending if self.calls.mixers[n] is not None]
            if i not in has:
                raise NotImplementedError(
                    f"decoder layer {i} of this {type(self.parts.lm).__name__} has no attention that could be read "
                    f"(layers that have: {', '.join(map(str, has)) or 'none'}): prune where {signals[0]} means one of "
                    "these, mostly right behind it, or use a method that does not read it"
                )
        return sorted(self.attended)

    def sublayers(self) -> list[tuple[tuple[int, str], nn.Module]]:
        """Sublayers whose input and output must be seen, by layer and block."""
        found = []
        for i, block in sorted(self.changed):
            layer, name = self.parts.layers[i], SUBLAYERS[block]
            if not hasattr(layer, name):
                raise NotImplementedError(
                    f"{type(layer).__name__} has no {name!r}, so what its {block} does to tokens can't be seen"
                )
            found.append(((i, block), getattr(layer, name)))
        return found

    def transition(
        self, place: tuple[int, str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Note what the sublayer at `place` does to each token."""
        run = self.local.run
        if run is not None and run.batch.spans:
            before = args[0] if args else call_of(module, args, kwargs).get("hidden")  # an MLP calls it something else
            capture_transition(run, self.changed[place], before, output[0] if isinstance(output, tuple) else output)

    def layer_pre(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prune before layer `i`, and give it the mask and rotary embeddings of the columns that are left."""
        changed = self._layer_pre(i, layer, args, kwargs)
        if self.local.planned is not None and changed is not None:
            self.plan(i + 1, call_of(layer, *changed).get("hidden"))
        return changed

    def _layer_pre(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self.local.run
        if run is None:
            return None
        call = call_of(layer, args, kwargs)
        hidden = call.get("hidden")
        if run.deepstack is not None:
            hidden = run.deepstack.added(i, hidden, run.columns)
        if self.sources[i] != i and hidden.shape[-2] == 1:
            run.only_last()  # all that the rest of the layers is asked for: they read keys that are there
        check_columns(run, i, hidden)
        if run.batch.spans:
            hidden = self.prune_before(run, i, layer, hidden, call)
            for key in self.done.get(i, ()):  # else all columns of an earlier layer would stay in memory
                run.captured.pop(key, None)
            if i in self.lends:
                with self._looking_ahead(run, i, layer, hidden, call):
                    hidden = self.lend(run, i, hidden)
        call.put("hidden", hidden)
        if run.checks is not None:
            run.checks.expect(i, run.cache, hidden.shape[-2])
        run.trail[i] = (run.columns, None)
        if self.windows.kinds[i] != ATTENTION:
            run.as_stock = False
            self.calls.recurrent(run, i, call)
            return call.args, call.kwargs
        run.attending.append(i)
        run.masks_made |= call.get("mask") is not None
        # where the first layer holds fewer, decoding knows of padding only by what the others have noted
        notes = 0 in self.lends and bool(run.batch.spans)
        stock = not run.pruned and not notes and not is_pruned(run.cache, self.sources[i])
        if run.static is not None or stock:
            return call.args, call.kwargs
        self.calls.narrow(run, i, call)
        if run.checks is not None:
            run.checks.gave(i, call)
        return call.args, call.kwargs

    def prune_before(self, run: Run, i: int, layer: Any, hidden: Tensor, call: Call) -> Tensor:
        """What the stops before layer `i` leave of `hidden`, which its `call` is about to be given."""
        capture_hidden(run, self.hidden.get(i - 1, ()), main_stream(hidden))
        for pruner, stop in self.stops.get(i, ()):
            with self._looking_ahead(run, i, layer, hidden, call):
                hidden = self._prune(run, pruner, stop, hidden)
        return hidden

    @contextlib.contextmanager
    def _looking_ahead(self, run: Run, i: int, layer: Any, hidden: Tensor, call: Call) -> Iterator[None]:
        """Let a method look into layer `i`, to whose `call` come the states `hidden`."""
        run.memo.pop("ahead", None)
        run.ahead = partial(self._look_ahead, run, i, layer, hidden, call)
        try:
            yield
        finally:
            run.ahead = None

    def _prune(self, run: Run, pruner: Pruner, stop: Stop, hidden: Tensor) -> Tensor:
        """Let a method choose by the main stream of the hidden states, and drop the same of all."""
        if hidden.dim() == 3:
            return self.steps.prune(run, pruner, stop, hidden)
        before = run.columns
        self.steps.prune(run, pruner, stop, main_stream(hidden))
        return gather_columns(hidden, run.stand_in(before), -2)

    def refuse_compiled(self, *_: Any) -> NoReturn:
        """Stands for the text model's hook where ``torch.compile`` traces."""
        raise NotImplementedError(
            f"{self.calibrating} adds to the attention of each layer, which vtc can't have torch.compile trace: call "
            "the model without it"
        )

    def last_layer_post(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add what is fed behind the last layer, where a text model has no more layers than are fed."""
        run = self.local.run
        if run is None or run.deepstack is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        changed = run.deepstack.added(len(self.parts.layers), hidden, run.columns)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def watched_layers(self) -> list[int]:
        """Layers whose mixer the tripwire looks at: the first of each kind, and wherever columns go."""
        kinds = self.windows.kinds
        return sorted({*map(kinds.index, kinds), *self.stops, *self.lends})

    def watch(self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See whether the attention of layer `i` gets what its layer was given."""
        run = self.local.run
        if run is not None and run.looking is None:
            check_attention(run, i, module, args, kwargs)

    def attention(
        self, i: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float
    ) -> Tensor | None:
        """Attention of layer `i` as the tap sees it; a look ahead needs no output."""
        run = self.local.run
        if run is None or not run.batch.spans:
            return None
        if run.looking is not None:
            rows, content, found = run.looking
            seen = None if content else mask
            weights = attention_rows(query, key, seen, scaling, rows, causal=not content, softmax=not content)
            found.append(every_head(module, weights[..., weights.shape[-1] - query.shape[2] :]))
            raise _Seen
        capture_attention(run, self.attended[i], module, query, key, value, mask, scaling)
        return None

    def _look_ahead(
        self, run: Run, i: int, layer: Any, hidden: Tensor, call: Call, queries: str, content: bool
    ) -> Tensor:
        """Attention rows of `queries` in layer `i` on its coming input `hidden`, `[B, H, R, L]`.

        The layer itself runs on what it is about to be given, as far as its attention: what stands before that
        (norms, streams, per-layer inputs) is the layer's own business.
        """
        coming = Call(call.signature, call.args, call.kwargs)
        coming.put("hidden", hidden)
        if run.cache is not None:
            coming.put("cache", Peek(run.cache))
        if run.pruned or is_pruned(run.cache, self.sources[i]):
            self.calls.narrow(run, i, coming, peek=True)
        if content and coming.get("rotary") is not None:
            coming.put("rotary", _unturned(coming.get("rotary")))
        found: list[Tensor] = []
        run.looking = query_columns(run, queries, hidden.shape[-2]), content, found
        try:
            with torch.no_grad(), contextlib.suppress(_Seen):
                # its forward and not the module: what transformers records of a layer is no look ahead
                layer.forward(*coming.args, **coming.kwargs)
        finally:
            run.looking = None
        return found[0]


def _unturned(rotary: Any) -> Any:
    """Rotary embeddings, cosines and sines or complex numbers, of the rotation by nothing."""
    if isinstance(rotary, Tensor):
        return torch.ones_like(rotary)
    cosines, sines = rotary
    return torch.ones_like(cosines), torch.zeros_like(sines)
