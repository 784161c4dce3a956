"""The hooks of the decoder layers: pruning before a layer, and the masks and rotary embeddings of what is left."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import Peek, is_pruned, push_slots, refuse_keyless, refuse_layers, seen_slots, slot_layer
from vtc.models.layout.model_parts import Parts
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_taps import attention_rows
from vtc.models.stock.attention_windows import ATTENTION, RECURRENT, Windows
from vtc.models.stock.shared_keys import key_sources
from vtc.models.stock.transformers_api import Call, call_of, keeps_state, need, takes
from vtc.models.stock.tripwire import check_attention, check_columns
from vtc.pruners.base import Pruner, Stop
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

from .column_arguments import cut_along, pick_columns, refuse_unknown
from .decoder_signals import capture_attention, capture_hidden, capture_transition, query_columns
from .forward_state import Run, gather_columns, main_stream
from .masks import gather_mask, keeps_pattern, padding_mask, slot_mask
from .run_and_report_step import Steps
from .thread_state import Local

SUBLAYERS = {"attention": "self_attn", "mlp": "mlp"}  # what they are called in a layer of transformers


def _mixer(layer: Any) -> Any:
    """What mixes the tokens of a layer: its attention, or its recurrence; None: nothing that takes a mask."""
    children = (m for m in layer.children() if all(takes(m, meaning) for meaning in ("hidden", "mask", "cache")))
    return getattr(layer, "self_attn", None) or next(children, None)


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
        self.stops: dict[int, list[tuple[Pruner, Stop]]] = {}
        for entry in stops:
            if entry[1].stage == "decoder":
                self.stops.setdefault(entry[1].layer or 0, []).append(entry)
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
        # attention beside recurrent layers may know no positions (Nemotron-H)
        rotary = () if keeps_state(parts.lm.config) else ("rotary",)
        for layer in parts.layers:
            need(layer, "hidden", "mask", *rotary)
            refuse_unknown(layer)
        refuse_layers(parts.lm)
        self.windows = Windows(parts.lm, parts.layers)
        self.sources = key_sources(parts.lm, parts.layers)
        self.attending = self.windows.attending()
        self.mixers = [_mixer(layer) for layer in parts.layers]
        refuse_keyless(parts.lm, [i for i in self.attending if self.sources[i] == i])
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
            has = [n for n in self.attending if self.mixers[n] is not None]
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
            capture_hidden(run, self.hidden.get(i - 1, ()), main_stream(hidden))
            for pruner, stop in self.stops.get(i, ()):
                run.memo.pop("ahead", None)
                run.ahead = partial(self._look_ahead, run, i, layer, hidden, call)
                hidden = self._prune(run, pruner, stop, hidden)
            run.ahead = None
        call.put("hidden", hidden)
        if run.checks is not None:
            run.checks.expect(i, run.cache, hidden.shape[-2])
        run.trail[i] = (run.columns, None)
        if self.windows.kinds[i] != ATTENTION:
            self._recurrent(run, i, call)
            return call.args, call.kwargs
        run.attending.append(i)
        if not run.pruned and not is_pruned(run.cache, self.sources[i]):
            return call.args, call.kwargs
        self._narrow(run, i, call)
        if run.checks is not None:
            run.checks.gave(i, call)
        return call.args, call.kwargs

    def _recurrent(self, run: Run, i: int, call: Call) -> None:
        """What goes with the columns of a layer whose state takes them one after another, or that mixes none."""
        if not run.pruned and not run.mask_hidden:
            return
        if run.pruned:
            cut_along(call, run.rope_columns)
        call.put("positions", None)
        if self.windows.kinds[i] == RECURRENT:
            if "padding" not in run.memo:
                run.memo["padding"] = padding_mask(run.slots, run.padded and run.slots.shape[1] > 1)
            mask = run.memo["padding"]
            call.put("mask", mask if mask is None else mask.to(call.get("hidden").device))
            if run.checks is not None:
                run.checks.gave(i, call, "mask")

    def _prune(self, run: Run, pruner: Pruner, stop: Stop, hidden: Tensor) -> Tensor:
        """Let a method choose by the main stream of the hidden states, and drop the same of all."""
        if hidden.dim() == 3:
            return self.steps.prune(run, pruner, stop, hidden)
        before = run.columns
        self.steps.prune(run, pruner, stop, main_stream(hidden))
        return gather_columns(hidden, run.stand_in(before), -2)

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
        return sorted({*map(kinds.index, kinds), *self.stops})

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
            rows, found = run.looking
            weights = attention_rows(query, key, mask, scaling, rows)
            found.append(weights[..., weights.shape[-1] - query.shape[2] :])
            raise _Seen
        capture_attention(run, self.attended[i], query, key, value, mask, scaling)
        return None

    def _look_ahead(self, run: Run, i: int, layer: Any, hidden: Tensor, call: Call, queries: str) -> Tensor:
        """Attention rows of `queries` in layer `i` on its coming input `hidden`, `[B, H, R, L]`.

        The layer itself runs on what it is about to be given, as far as its attention: what stands before that
        (norms, streams, per-layer inputs) is the layer's own business.
        """
        coming = Call(call.signature, call.args, call.kwargs)
        coming.put("hidden", hidden)
        if run.cache is not None:
            coming.put("cache", Peek(run.cache))
        if run.pruned or is_pruned(run.cache, self.sources[i]):
            self._narrow(run, i, coming, peek=True)
        found: list[Tensor] = []
        run.looking = query_columns(run, queries, hidden.shape[-2]), found
        try:
            with torch.no_grad(), contextlib.suppress(_Seen):
                # its forward and not the module: what transformers records of a layer is no look ahead
                layer.forward(*coming.args, **coming.kwargs)
        finally:
            run.looking = None
        return found[0]

    def _narrow(self, run: Run, i: int, call: Call, peek: bool = False) -> None:
        """Give an attending layer what belongs to the columns that are left, beside its hidden states."""
        if run.pruned:
            if call.get("rotary") is not None:
                call.put("rotary", self._rotary(run, call.get("rotary")))
            cut_along(call, run.rope_columns)
        call.put("positions", self._position_ids(run, i, call.get("positions")))
        call.put("mask", self._mask(run, i, call.get("hidden"), call.get("mask"), peek))

    @staticmethod
    def _rotary(run: Run, embeddings: Any) -> Any:
        key = ("rotary", id(embeddings))
        if key not in run.memo:  # the original is kept too, so that its id stays unique
            run.memo[key] = (embeddings, pick_columns("rotary", embeddings, run.rope_columns))
        return run.memo[key][1]

    def _position_ids(self, run: Run, i: int, ids: Any) -> Any:
        """Position ids of what is left, where the attention itself reads them."""
        attention = self.mixers[i]
        if not isinstance(ids, Tensor) or attention is None or not takes(attention, "positions"):
            return None  # nobody but flash would read them, and take gaps for packed sequences
        return pick_columns("positions", ids, run.rope_columns) if run.pruned else ids

    def _mask(self, run: Run, i: int, hidden: Tensor, given: Any, peek: bool = False) -> Any:
        """Mask of layer `i`, whose cache notes what it is about to hold, unless this is only a peek."""
        if run.windows is None:
            run.windows = self.windows.now()
        window, prompt = run.windows[i], 0
        slots = run.slots.to(hidden.device)
        new = run.key_slots.to(hidden.device)
        source = self.sources[i]
        if source != i:  # the keys are those that the source has just attended to
            keys = run.trail[source][1]
            assert keys is not None
            held = None if run.cache is None else slot_layer(run.cache, source)
            padded = run.padded or bool(held is not None and held.padded)
            past = keys.shape[1] - new.shape[1]
            key: tuple[Any, ...] = ("mask", source)
        elif run.cache is None:
            past, keys, padded, key = 0, new, run.padded, ("mask", window, 0, ())
        else:
            held = slot_layer(run.cache, i)
            past, padded = held.physical(), held.padded or run.padded
            keys = seen_slots(held, new, run.memo) if peek else push_slots(held, new, run.full, run.memo)
            history = (*held.history, run.stage_count) if run.batch.spans else held.history
            if held.prompt is not None:
                window, prompt = held.sliding_window, held.prompt
            key = ("mask", window, past, history)
            if not peek:
                held.padded, held.history = padded, history
        if not peek:
            run.trail[i] = (run.columns, keys)
        if key not in run.memo:
            run.memo[key] = self._build_mask(run, given, slots, keys, past, padded, window, hidden.dtype, prompt)
        return run.memo[key]

    def _build_mask(
        self,
        run: Run,
        given: Any,
        slots: Tensor,
        keys: Tensor,
        past: int,
        padded: bool,
        window: int | None,
        dtype: Any,
        prompt: int,
    ) -> Any:
        config = self.parts.lm.config
        if window is not None and run.past + run.full > window and "flash" in attention_kind(config):
            raise NotImplementedError(
                f"flash attention would count the window of {window} tokens in kept ones, and see further back than "
                "the model does: call model.set_attn_implementation('sdpa') first"
            )
        given = None if run.mask_hidden else given
        if not past and keeps_pattern(given, run.full):  # special patterns: Gemma3's bidirectional images
            return gather_mask(given, run.columns.to(slots.device), config, run.key_slots.to(slots.device))
        if past and isinstance(given, Tensor) and given.dim() == 4 and given.shape[-1] == run.past + run.full:
            # a mask over the whole sequence: the caller's own, or a layer's that nothing was pruned before
            rows = torch.zeros_like(run.columns) if run.narrowed else run.columns
            return gather_mask(given, rows.to(slots.device), config, keys)
        pattern = None
        if past and hasattr(given, "mask_mod") and run.full > 1:  # the same in flex attention's words
            pattern = given, given.seq_lengths[1] - run.full, run.columns.to(slots.device)
        mask = slot_mask(config, slots, keys, dtype, padded, window, pattern, prompt)
        if past and isinstance(given, Tensor) and given.dim() == 4 and given.shape[-2] == run.full > 1:
            columns = run.columns.to(slots.device)
            own = torch.where(run.key_slots.to(slots.device) < 0, -1, columns)
            new = gather_mask(given[..., given.shape[-1] - run.full :], columns, config, own)
            if mask is None:
                mask = slot_mask(config, slots, keys, dtype, True, window, prompt=prompt)
            mask = torch.cat([mask[..., : keys.shape[1] - slots.shape[1]], new], -1)
        return mask
