"""What a decoder layer is called with when columns are gone: rotary embeddings, positions and the mask of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import push_slots, seen_slots, slot_layer
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_windows import RECURRENT, Windows
from vtc.models.stock.call_arguments import Call, takes

from .column_arguments import cut_along, pick_columns
from .forward_state import Run
from .masks import calibrated, gather_mask, keeps_pattern, padding_mask, slot_mask
from .positions import warn_window


def _mixer(layer: Any) -> Any:
    """What mixes the tokens of a layer: its attention, or its recurrence; None: nothing that takes a mask."""
    children = (m for m in layer.children() if all(takes(m, meaning) for meaning in ("hidden", "mask", "cache")))
    return getattr(layer, "self_attn", None) or next(children, None)


class LayerCalls:
    """Narrows the calls of a text model's layers to the columns that are left.

    Parameters
    ----------
    lm : nn.Module
        The text model.
    layers : sequence of nn.Module
        Its layers.
    windows : Windows
        What each layer is and how far back it sees.
    sources : list of int
        The layer whose keys each layer reads, mostly its own.
    """

    def __init__(self, lm: Any, layers: Sequence[nn.Module], windows: Windows, sources: list[int]):
        self.lm, self.windows, self.sources = lm, windows, sources
        self.mixers = [_mixer(layer) for layer in layers]
        self.warned = False

    def recurrent(self, run: Run, i: int, call: Call) -> None:
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

    def narrow(self, run: Run, i: int, call: Call, peek: bool = False) -> None:
        """Give an attending layer what belongs to the columns that are left, beside its hidden states."""
        if run.pruned:
            if call.get("rotary") is not None:
                call.put("rotary", self._rotary(run, call.get("rotary")))
            cut_along(call, run.rope_columns)
        call.put("positions", self._position_ids(run, i, call.get("positions")))
        call.put("mask", self.mask(run, i, call.get("hidden"), call.get("mask"), peek, call.get("rotary")))

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

    def mask(self, run: Run, i: int, hidden: Tensor, given: Any, peek: bool = False, rotary: Any = None) -> Any:
        """Mask of layer `i`, whose cache notes what it is about to hold, unless this is only a peek."""
        if run.windows is None:
            run.windows = self.windows.now()
            if run.renumbered and not self.warned:
                self.warned = warn_window(run.windows, run.past + run.full)
        window, prompt = run.windows[i], 0
        slots = run.slots.to(hidden.device)
        new = run.key_slots.to(hidden.device)
        source = self.sources[i]
        run.as_stock &= source == i and (given is None or isinstance(given, Tensor))
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
            elif window is not None and run.past + run.full <= window:
                window = None  # nothing is as far back yet
            key = ("mask", window, past, history)
            if not peek:
                held.padded, held.history = padded, history
        if not peek:
            run.trail[i] = (run.columns, keys)
        if run.sizes is not None:
            key = (*key, id(rotary))
        if key not in run.memo:
            mask = self._build_mask(run, given, slots, keys, past, padded, window, hidden.dtype, prompt)
            run.memo[key] = self._calibrated(run, mask, rotary, slots, keys.shape[1], hidden.dtype)
        run.as_stock &= window is None
        run.masked |= run.memo[key] is not None
        return run.memo[key]

    def _calibrated(self, run: Run, mask: Any, rotary: Any, slots: Tensor, keys: int, dtype: torch.dtype) -> Any:
        counted = run.counted()
        if counted is None:
            return mask
        if attention_kind(self.lm.config) not in ("sdpa", "eager"):
            raise NotImplementedError(
                f"{attention_kind(self.lm.config)} takes no numbers that are added to attention, as calibrating does: "
                "call model.set_attn_implementation('sdpa') first"
            )
        if isinstance(rotary, tuple) and any(x.dim() == 4 for x in rotary):
            raise NotImplementedError(
                f"this transformers gives the rotary embedding of {type(self.lm).__name__} apart for each axis of "
                "positions, which calibrating attention does not know: upgrade transformers, or prune without it"
            )
        asks = slots >= 0
        if run.prompt is not None:  # what is generated sees plain logits, behind a cache and in assisted decoding too
            asks &= slots < run.prompt
        return calibrated(mask, rotary, counted.to(slots.device), asks, keys, dtype)

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
        config = self.lm.config
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
