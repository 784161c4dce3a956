"""The hooks of the text model: what is pruned in front of its layers, and how its inputs and outputs follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import (
    first_columns,
    is_pruned,
    length_of,
    note_padding,
    refuse_layers,
    refuse_unsupported,
)
from vtc.models.cache.static_layers import is_short, is_static
from vtc.models.cache.steady_steps import forget_steady, note_steady, of_padding, steady_of
from vtc.models.layout.items_behind_placeholders import Fed
from vtc.models.layout.spans import Batch, last_valid, make_batch, readable
from vtc.models.selection.column_indices import all_ids, gather_columns
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.call_arguments import Call, configured, need, signature_of
from vtc.models.stock.tokenizer import Words
from vtc.models.stock.transformers_api import Cache, checkpointed, keeps_state, new_cache
from vtc.models.stock.tripwire import check_output, checks_for
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.signals import Signal

from .column_arguments import cut_along, refuse_unknown
from .composite_hooks import CompositeSide
from .decoder_signals import EMBEDDINGS
from .deepstack import Deepstack
from .forward_state import Run
from .full_length_outputs import restore_output
from .masks import past_columns, valid_columns
from .positions import positions_left, positions_of
from .refused_arguments import (
    refuse_arguments,
    refuse_fewer_columns,
    refuse_generate,
    refuse_merging,
    refuse_unnamed,
)
from .run_and_report_step import Steps


class TextSide:
    """Hook bodies; ``Adapter`` says where they go.

    Parameters
    ----------
    composite : CompositeSide
        The model around it.
    stops : list of (Pruner, Stop)
        In forward order.
    signals : set of Signal
        Declared by the pruners, layers resolved.
    positions : str
        ``"keep"`` or ``"compact"``.
    steps : Steps
        Runs and reports a pruning step.
    words : Words, optional
        The tokenizer, where a method reads the question.
    """

    def __init__(
        self,
        composite: CompositeSide,
        stops: list[tuple[Pruner, Stop]],
        signals: set[Signal],
        positions: str,
        steps: Steps,
        words: Words | None,
    ):
        self.composite, self.parts, self.local = composite, composite.parts, composite.local
        self.hooks, self.traffic = composite.hooks, composite.traffic
        self.static: Any = None  # set by the adapter: static caches
        self.positions, self.steps, self.words = positions, steps, words
        self.input_stops = [e for e in stops if e[1].stage == "input"]
        self.ends_at_input = all(stop.stage in ("input", "vision") for _, stop in stops)
        self.keep_embeddings = any(s.part == "input" for s in signals)
        lm = self.parts.lm
        refuse_generate(self.parts)
        refuse_unnamed(self.parts)
        refuse_merging(self.parts, self.input_stops)
        need(lm, "embeds", "mask", "positions", "cache")
        refuse_layers(lm)  # before arguments that exist for such layers only
        refuse_unknown(lm)
        self.recurrent = keeps_state(lm.config)
        self.signature = signature_of(lm)

    def before(self, lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Open the run, and see to it that the layers' hooks are there if it needs them."""
        local = self.local
        if local.short:
            return None
        local.run = local.planned = None
        changed = self._begin(lm, args, kwargs)
        if local.run is None:
            if self.hooks.awake and self.traffic.alone():
                self.hooks.sleep()
        elif not local.awake:
            local.awake = True
            self.hooks.wake()
        return changed

    def _begin(self, lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prune at the input stage, and slice what goes with the embeddings."""
        local = self.local
        call = Call(self.signature, args, kwargs)
        embeds, cache = call.get("embeds"), call.get("cache")
        # Gemma3's composite model makes masks of its own, also where it was given none
        called = local.called if local.inside else call
        asked = None if called is None else called.get("mask")
        steady = steady_of(cache)
        if steady is not None:
            if local.fed is None and not local.records and steady.serves(lm, cache, call, asked):
                steady.begin(cache, call, asked)
                local.steady, local.prompted = steady, None
                return call.args, call.kwargs
            forget_steady(cache)
        if is_short(cache) and local.fed is None and not local.records:
            step = self.static.step()
            step.begin(cache, call, asked)
            local.steady, local.prompted = step, None
            return call.args, call.kwargs
        if not local.inside:  # called by itself
            self.composite.without_pictures(call, False)
            if embeds is None and is_pruned(cache):
                embeds = lm.get_input_embeddings()(call.pop("ids"))
                call.put("embeds", embeds)
        masks = self.composite.visual()
        fed = self.composite.as_fed(masks) if masks else {}
        if not fed and not is_pruned(cache):
            # text beside the prompt of a generate() with pictures (guidance) has no report of its own
            beside = local.encoded is not None and local.pictured is local.encoded
            if embeds is not None and embeds.shape[1] > 1 and not length_of(cache) and not beside:
                self.steps.open_report()
            return None
        if not isinstance(embeds, Tensor):
            return None
        if masks:
            refuse_fewer_columns(self.parts, next(iter(masks.values())).shape[1], embeds.shape[1])
        static = self.static.takes(cache, bool(fed))
        if isinstance(cache, Cache) and not static:
            refuse_unsupported(cache)
        use_cache = call.get("use cache")
        if use_cache is None:
            use_cache = bool(configured(lm.config, "use cache")) and not checkpointed(lm)
            call.put("use cache", use_cache)  # else the text model may make a cache that nobody tracks
        if checkpointed(lm) and not length_of(cache):
            cache = None  # the layers drop the one they are given
        elif cache is None and use_cache:
            cache = new_cache(lm.config)
            call.put("cache", cache)
        refuse_arguments(self.parts, call, asked, cache)
        keep = call.get("logits to keep")
        # Gemma 4: its last layers run on so many columns, dropped ones among them
        if isinstance(keep, int) and keep > 1:
            call.put("logits to keep", 0)
        run = self._open(embeds, cache, call, masks, fed)
        run.padding_only = of_padding(asked)
        if run.batch.spans:
            self.steps.open_report(run)
            run.deepstack = Deepstack.taken(call, run.columns.device)
        first = first_columns(cache) if isinstance(cache, Cache) else 0
        shift = cache.layers[first].shift if is_pruned(cache, first) else None
        if shift is not None:  # compact positions: the caller counts on from the original ones
            call.put("positions", positions_of(run, call) - shift[:, None].to(embeds.device))
        if run.batch.spans:
            seen = embeds if run.deepstack is None else run.deepstack.first(embeds, run.columns)
            if self.keep_embeddings:
                run.captured[EMBEDDINGS] = (seen, run.current())
            hidden = self.steps.drop_encoder_pruned(run, seen)
            for pruner, stop in self.input_stops:
                hidden = self.steps.prune(run, pruner, stop, hidden)
            if seen is not embeds:  # what the layers add is added there
                hidden = gather_columns(embeds, run.columns, -2) if run.pruned else embeds
            if run.pruned or hidden is not embeds:
                self._slice_inputs(run, call, hidden, shift)
            elif self.ends_at_input and not (static or is_pruned(cache)):  # all is kept: the stock model's own forward
                local.untouched, local.opened, local.pending, local.pictured = run, True, False, local.encoded
                return None
        if static:
            if run.pruned:
                run.static = self.static.begin(run, call, self._before(run, call) if run.past else None)
        elif run.pruned or is_pruned(cache, first):
            self._hide_mask(run, call)
        run.renumbered = self.positions == "compact" and (run.pruned or shift is not None)
        local.run = run
        local.opened, local.pending, local.pictured = True, False, local.encoded if fed else local.pictured
        return call.args, call.kwargs

    def _open(
        self,
        embeds: Tensor,
        cache: Any,
        call: Call,
        masks: dict[str, Tensor],
        fed: dict[str, Fed],
    ) -> Run:
        rows, length = embeds.shape[:2]
        device, past = embeds.device, length_of(cache)
        mask = self._asked(call)
        # a single new token is never padding: decoding needs no look at the mask
        valid = valid_columns(mask, rows, length, device, past if is_static(cache) else None) if length > 1 else None
        columns = torch.arange(length, device=device).expand(rows, length)
        masks = {m: x.to(device) for m, x in masks.items()}
        prompt = self.local.prompt
        end = length if prompt is None or prompt <= past else min(length, prompt - past)
        if fed:
            batch, padded = make_batch(masks, fed, valid, end)
        else:
            batch = Batch.without_spans(rows, device)
            padded = valid is not None and (not readable(valid) or not bool(valid.all()))
        if past and batch.spans and not is_pruned(cache) and not is_static(cache):
            before = past_columns(mask, past, length, device)
            if before is not None:
                note_padding(cache, before)
        slots = columns + past
        if padded and valid is not None:
            slots = torch.where(valid, slots, -1)
        everything = torch.ones_like(columns, dtype=torch.bool)
        run = Run(length, past, columns, slots, columns, everything if valid is None else valid, padded, batch, cache)
        run.came_padded, run.present = padded, list(batch.lengths)
        run.ids = all_ids(batch.lengths, device)
        run.prompt, run.end, run.checks = prompt, end, checks_for(cache, bool(fed))
        # a state can't be asked by a token that it has not seen: the last one left answers
        if any(batch.ends) and not self.composite.inside_tower and not self.recurrent and self.positions == "keep":
            run.asking = self._asking(batch, valid, end, device)
        run.words, run.token_ids, run.find_pictures = self.words, self.local.token_ids, self.parts.family.pictures
        return run

    def _asked(self, call: Call) -> Any:
        """The mask that the composite model was given, else the text model's."""
        mask = None if self.local.called is None else self.local.called.get("mask")
        return mask if isinstance(mask, Tensor) else call.get("mask")

    def _before(self, run: Run, call: Call) -> Tensor | None:
        """``past_columns`` in front of this forward, in a static cache that nothing was pruned from."""
        if is_short(run.cache):
            return None
        return past_columns(self._asked(call), run.past, run.full, run.columns.device)

    def _asking(self, batch: Batch, valid: Tensor | None, end: int, device: torch.device) -> Tensor:
        """`[B]`: a prompt's last column where that is a visual one, which the next token is asked of; else -2."""
        if "flash" in attention_kind(self.parts.lm.config):
            raise NotImplementedError(
                "a prompt that ends in a picture can't be pruned under flash attention, which can't hide the last "
                "column's key: end the prompt with text, or call model.set_attn_implementation('sdpa') first"
            )
        last = last_valid(valid, len(batch.ends), end, device)
        return torch.where(torch.tensor(batch.ends, device=device), last, -2)

    def _slice_inputs(self, run: Run, call: Call, hidden: Tensor, shift: Tensor | None) -> None:
        call.put("embeds", hidden)
        if not run.pruned:
            return
        cut_along(call, run.columns)
        call.put("positions", positions_left(run, call, self.positions == "compact", shift))
        run.rope_columns = torch.arange(hidden.shape[1], device=run.columns.device).expand(hidden.shape[0], -1)
        run.rope_moved = False

    @staticmethod
    def _hide_mask(run: Run, call: Call) -> None:
        """The layers get masks from us. Without a cache, ones and not None: gaps in positions are read as packing."""
        mask = call.get("mask")
        if isinstance(mask, dict) or (mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2)):
            return
        run.mask_hidden = True
        embeds = call.get("embeds")
        ones = torch.ones(embeds.shape[:2], device=embeds.device, dtype=torch.long) if run.cache is None else None
        call.put("mask", ones)

    def after(self, lm: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Give the output its full length again, so that losses stay aligned."""
        local = self.local
        if local.short or local.end_steady():
            return None
        if local.awake:
            local.awake = False
            self.hooks.leave()
        run, local.run = local.run, None
        if run is not None and run.static is not None:
            run.static.open = False
        if run is None or output is None:
            return None
        check_output(lm, len(self.parts.layers), run, output)
        note_steady(lm, run)
        return restore_output(run, output)
