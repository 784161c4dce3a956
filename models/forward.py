"""The hooks of one wrapped model: what happens at the composite model, the text model and each decoder layer."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from vtc.pruners.base import Pruner, Stop
from vtc.pruners.signals import DecoderAttention, DecoderHidden, DecoderKeys, DecoderSignal, Signal

from .cache import is_pruned, push_slots, refuse_unsupported, slot_layer
from .fed import Fed, fed_of
from .locate import Parts
from .masks import gather_mask, keeps_pattern, slot_mask, valid_columns
from .prune import keep_given, prune_step
from .record import VisionRecord
from .report import Report
from .run import Run, gather_columns
from .signals import EMBEDDINGS, capture_attention, capture_hidden
from .spans import Batch, make_batch, readable


class Local(threading.local):
    """Per-thread state, so that threads that share a wrapped model never see each other's."""

    def __init__(self) -> None:
        self.records: dict[str, VisionRecord] = {}
        self.masks: dict[str, Tensor] | None = None
        self.fed: Any = None
        self.attention_mask: Any = None
        self.run: Run | None = None
        self.report: Report | None = None

    def clear(self) -> None:
        """Forget everything but the report."""
        self.records, self.masks, self.fed, self.attention_mask, self.run = {}, None, None, None, None

    def __deepcopy__(self, memo: dict[int, Any]) -> Local:
        return Local()

    def __reduce__(self) -> Any:
        return Local, ()


class Forward:
    """Hook bodies; ``Adapter`` says where they go.

    Parameters
    ----------
    parts : Parts
        The model's parts.
    stops : list of (Pruner, Stop)
        In forward order.
    signals : set of Signal
        Declared by the pruners, layers resolved.
    positions : str
        ``"keep"`` or ``"compact"``.
    local : Local
        Per-thread state.
    """

    def __init__(
        self, parts: Parts, stops: list[tuple[Pruner, Stop]], signals: set[Signal], positions: str, local: Local
    ):
        self.parts, self.positions, self.local = parts, positions, local
        self.input_stops = [e for e in stops if e[1].stage == "input"]
        self.vision_stops = [e for e in stops if e[1].stage == "vision"]
        self.decoder_stops: dict[int, list[tuple[Pruner, Stop]]] = {}
        for entry in stops:
            if entry[1].stage == "decoder":
                self.decoder_stops.setdefault(entry[1].layer or 0, []).append(entry)
        self.decoder_signals = [s for s in signals if isinstance(s, DecoderSignal)]
        self.encoder_signals = [s for s in signals if s.part == "encoder"]
        self.keep_embeddings = any(s.part == "input" for s in signals)
        self.timing = False
        self.last_report: Report | None = None
        self.deepstack_layers = len(getattr(parts.tower, "deepstack_visual_indexes", ()) or ())

    def tapped_layers(self) -> list[int]:
        """Decoder layers whose attention must be seen."""
        return sorted({s.layer or 0 for s in self.decoder_signals if isinstance(s, (DecoderAttention, DecoderKeys))})

    # ------------------------------------------------------------------ the composite model
    def core_pre(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the placeholders, if visual input came along."""
        self.local.clear()
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeds = kwargs.get("inputs_embeds")
        given = kwargs.get("mm_encoder_outputs")
        has = given is not None and (isinstance(given, Tensor) or any(v is not None for v in given.values()))
        pixels = any(kwargs.get(k) is not None for k in ("pixel_values", "pixel_values_videos")) or (
            len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() > 2
        )
        if not (has or pixels):
            return
        self.local.fed = given if has else None
        self.local.masks = self._placeholders(ids, embeds)
        self.local.attention_mask = kwargs.get("attention_mask")

    def core_post(self, core: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forget this forward, even when it raised."""
        self.local.clear()

    def _placeholders(self, ids: Tensor | None, embeds: Tensor | None) -> dict[str, Tensor]:
        masks = {}
        for modality in ("image", "video"):
            token = getattr(self.parts.config, f"{modality}_token_id", None)
            if token is None:
                continue
            if ids is not None:
                masks[modality] = ids == token
            elif embeds is not None:  # as transformers does
                one = self.parts.core.get_input_embeddings()(torch.full((), token, device=embeds.device))
                masks[modality] = (embeds == one.to(embeds.device)).all(-1)
        return masks

    def _fed(self, masks: dict[str, Tensor]) -> dict[str, Fed]:
        """Per modality the record and the lengths of the items as fed."""
        fed: dict[str, Fed] = {}
        given = self.local.fed if self.local.fed is not None else {}
        given = {"image": given} if isinstance(given, Tensor) else given
        for modality in masks:
            output = given.get(modality)
            if output is None:
                record = self.local.records.get(modality)
                if record is not None:
                    fed[modality] = Fed(record, record.lengths)
                continue
            fed[modality] = fed_of(self.parts, modality, output)
        for one in fed.values():
            missing = [s for s in self.encoder_signals if s not in one.record.signals]
            if missing or (self.vision_stops and not one.record.steps):
                raise ValueError(
                    "these mm_encoder_outputs were computed outside this wrapped model, so what the pruner needs of the "
                    f"vision encoder ({', '.join(map(str, missing)) or 'pruning inside it'}) is not there: compute them "
                    "with the wrapped model's get_image_features, or pass pixel_values"
                )
        return fed

    # ------------------------------------------------------------------ the text model
    def lm_pre(self, lm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Open the run, prune at the input stage, and slice what goes with the embeddings."""
        local = self.local
        local.run = None
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        masks, local.masks = local.masks, None
        held = is_pruned(cache)
        fed = self._fed(masks) if masks else {}
        if not fed and not held:
            if embeds is not None and embeds.shape[1] > 1 and not _length(cache):
                self._publish(Report(len(self.parts.layers)))
            return None
        if not isinstance(embeds, Tensor):
            return None
        if isinstance(cache, Cache):
            refuse_unsupported(cache)
        kwargs = dict(kwargs)
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(lm.config, "use_cache", False) and not lm.training
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=lm.config)
        run = self._open(embeds, cache, kwargs, masks or {}, fed, held)
        if run.batch.spans:
            self._publish(Report(len(self.parts.layers), run.batch, 0.0 if self.timing else None))
        self._take_deepstack(run, kwargs)
        shift = cache.layers[0].shift if is_pruned(cache, 0) else None
        if shift is not None:  # compact positions: the caller counts on from the original ones
            kwargs["position_ids"] = self._positions(run, kwargs) - shift[:, None].to(embeds.device)
        if run.batch.spans:
            if self.keep_embeddings:
                run.captured[EMBEDDINGS] = (embeds, run.current())
            hidden = self._vision_drop(run, embeds)
            for pruner, stop in self.input_stops:
                hidden = self._prune(run, pruner, stop, hidden)
            if run.pruned or hidden is not embeds:
                self._slice_inputs(run, kwargs, hidden, shift)
        if run.pruned or is_pruned(cache, 0):
            self._hide_mask(run, kwargs)
        local.run = run
        return args, kwargs

    def _open(
        self, embeds: Tensor, cache: Any, kwargs: dict[str, Any], masks: dict[str, Tensor], fed: dict[str, Fed], held: bool
    ) -> Run:
        rows, length = embeds.shape[:2]
        device, past = embeds.device, _length(cache)
        mask = self.local.attention_mask if isinstance(self.local.attention_mask, Tensor) else kwargs.get("attention_mask")
        # a single new token is never padding: decoding needs no look at the mask
        valid = valid_columns(mask, rows, length, device) if length > 1 else None
        columns = torch.arange(length, device=device).expand(rows, length)
        masks = {m: x.to(device) for m, x in masks.items() if m in fed}
        if fed:
            batch, padded = make_batch(masks, fed, valid)
        else:
            batch = _no_spans(rows, device)
            padded = valid is not None and (not readable(valid) or not bool(valid.all()))
        slots = columns + past
        if padded and valid is not None:
            slots = torch.where(valid, slots, -1)
        run = Run(length, past, columns, slots, columns, padded, batch, cache=cache, held=held)
        run.present = list(batch.lengths)
        run.ids = _all_ids(batch.lengths, device)
        run.captured["valid"] = (valid if valid is not None else torch.ones_like(columns, dtype=torch.bool), run.ids)
        return run

    def _vision_drop(self, run: Run, hidden: Tensor) -> Tensor:
        """Drop the placeholders of the tokens that the encoder already dropped."""
        report = self.local.report
        counts = {len(f.record.steps) for f in run.batch.fed.values()}
        for i in range(max(counts)):
            kept = run.batch.per_span(lambda record, i=i: record.steps[i].kept)  # type: ignore[misc]
            layer = run.batch.per_span(lambda record, i=i: [record.steps[i].layer] * len(record.lengths))[0]  # type: ignore[misc]
            hidden = keep_given(run, kept, hidden)
            assert report is not None
            report.add("vision", layer, run.ids, run.present)
        return hidden

    def _slice_inputs(self, run: Run, kwargs: dict[str, Any], hidden: Tensor, shift: Tensor | None) -> None:
        kwargs["inputs_embeds"] = hidden
        if not run.pruned:
            return
        positions = gather_columns(self._positions(run, kwargs), run.columns, -1)
        if self.positions == "compact":
            if positions.dim() != 2:
                raise ValueError("positions='compact' is not defined for multi-dimensional rotary embeddings; use 'keep'")
            real = run.slots >= 0
            start = torch.where(real, positions, torch.iinfo(positions.dtype).max).amin(1, keepdim=True)
            compact = torch.where(real, real.long().cumsum(1) - 1 + start, 0)
            if run.cache is not None:
                gap = (positions - compact)[:, -1]
                slot_layer(run.cache, 0).shift = gap if shift is None else shift + gap
            positions = compact
        kwargs["position_ids"] = positions
        run.rope_columns = torch.arange(hidden.shape[1], device=run.columns.device).expand(hidden.shape[0], -1)

    def _positions(self, run: Run, kwargs: dict[str, Any]) -> Tensor:
        given = kwargs.get("position_ids")
        if given is not None:
            return given
        return (torch.arange(run.full, device=run.columns.device) + run.past)[None]

    @staticmethod
    def _hide_mask(run: Run, kwargs: dict[str, Any]) -> None:
        """The layers get masks from us. Without a cache, ones and not None: gaps in positions are read as packing."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict) or (mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2)):
            return
        embeds = kwargs["inputs_embeds"]
        kwargs["attention_mask"] = (
            torch.ones(embeds.shape[:2], device=embeds.device, dtype=torch.long) if run.cache is None else None
        )

    def lm_post(self, lm: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Give the last hidden state its full length again, zeros where tokens are gone, so that losses stay aligned."""
        run, self.local.run = self.local.run, None
        if run is None or not run.pruned or output is None:
            return None
        hidden = output.last_hidden_state
        rows, length, width = hidden.shape
        if length == run.full:
            return None
        index = torch.where(run.columns < 0, run.full, run.columns).to(hidden.device)
        full = hidden.new_zeros(rows, run.full + 1, width)
        output.last_hidden_state = full.scatter(1, index[..., None].expand(rows, length, width), hidden)[:, : run.full]
        return output

    # ------------------------------------------------------------------ the decoder layers
    def layer_pre(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prune before layer `i`, and give it the mask and rotary embeddings of the columns that are left."""
        run = self.local.run
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if run.batch.spans:
            capture_hidden(run, [s for s in self.decoder_signals if isinstance(s, DecoderHidden) and s.layer == i - 1], hidden)
            for pruner, stop in self.decoder_stops.get(i, ()):
                hidden = self._prune(run, pruner, stop, hidden)
        if not run.pruned and not is_pruned(run.cache, i):
            if not args:
                return args, {**kwargs, "hidden_states": hidden}
            return (hidden, *args[1:]), kwargs
        kwargs = dict(kwargs)
        if run.pruned:
            kwargs["position_embeddings"] = self._rotary(run, kwargs["position_embeddings"])
        kwargs["position_ids"] = None  # only flash reads it, and would take gaps for packed sequences
        kwargs["attention_mask"] = self._mask(run, i, hidden, kwargs.get("attention_mask"))
        if args:
            return (hidden, *args[1:]), kwargs
        kwargs["hidden_states"] = hidden
        return args, kwargs

    def attention(
        self, i: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float
    ) -> None:
        """Attention of layer `i` as the tap sees it."""
        run = self.local.run
        if run is not None and run.batch.spans:
            capture_attention(run, [s for s in self.decoder_signals if s.layer == i], query, key, mask, scaling)

    @staticmethod
    def _rotary(run: Run, embeddings: Any) -> Any:
        key = ("rotary", id(embeddings))
        if key not in run.memo:  # the original is kept too, so that its id stays unique
            picked = tuple(gather_columns(x, run.rope_columns, -2) for x in embeddings)
            run.memo[key] = (embeddings, picked)
        return run.memo[key][1]

    def _mask(self, run: Run, i: int, hidden: Tensor, given: Any) -> Any:
        config = self.parts.lm.config
        attention = self.parts.layers[i].self_attn
        window = getattr(attention, "sliding_window", None) if hasattr(attention, "sliding_window") else None
        if not hasattr(attention, "sliding_window"):
            window = getattr(config, "sliding_window", None)
        slots = run.slots.to(hidden.device)
        if run.cache is None:
            past, keys, padded, key = 0, slots, run.padded, ("mask", window, 0, ())
        else:
            held = slot_layer(run.cache, i)
            past = held.physical()
            keys = push_slots(held, slots, run.full, run.memo)
            held.padded = padded = held.padded or run.padded
            if run.batch.spans:
                held.history += (run.stage_count,)
            key = ("mask", window, past, held.history)
        if key not in run.memo:
            run.memo[key] = self._build_mask(run, given, slots, keys, past, padded, window, hidden.dtype)
        return run.memo[key]

    def _build_mask(
        self, run: Run, given: Any, slots: Tensor, keys: Tensor, past: int, padded: bool, window: int | None, dtype: Any
    ) -> Any:
        config = self.parts.lm.config
        if not past and keeps_pattern(given, run.full):  # special patterns: Gemma3's bidirectional images
            return gather_mask(given, run.columns.to(slots.device), config)
        mask = slot_mask(config, slots, keys, dtype, padded, window)
        if past and isinstance(given, Tensor) and given.dim() == 4 and given.shape[-2] == run.full > 1:
            new = gather_mask(given[..., given.shape[-1] - run.full :], run.columns.to(slots.device), config)
            if mask is None:
                mask = slot_mask(config, slots, keys, dtype, True, window)
            mask = torch.cat([mask[..., : keys.shape[1] - slots.shape[1]], new], -1)
        return mask

    # ------------------------------------------------------------------ pruning
    def _prune(self, run: Run, pruner: Pruner, stop: Stop, hidden: Tensor) -> Tensor:
        report = self.local.report
        assert report is not None
        started = _now(hidden) if self.timing else 0.0
        hidden = prune_step(run, pruner, stop, hidden, self.parts.final_norm)
        if self.timing and report.selection_seconds is not None:
            report.selection_seconds += _now(hidden) - started
        report.add(stop.stage, stop.layer, run.ids, run.present)
        return hidden

    def _publish(self, report: Report) -> None:
        self.local.report = self.last_report = report

    # ------------------------------------------------------------------ Qwen3-VL
    def _take_deepstack(self, run: Run, kwargs: dict[str, Any]) -> None:
        """Take over the addition of deepstack features, which the text model does by a full-length mask."""
        if kwargs.get("deepstack_visual_embeds") is None or not run.batch.spans:
            return
        mask = kwargs.pop("visual_pos_masks").to(run.columns.device)
        rank = mask.reshape(-1).long().cumsum(0).view_as(mask) - 1
        run.deepstack = (torch.where(mask, rank, -1), kwargs.pop("deepstack_visual_embeds"))

    def layer_post(self, i: int, layer: nn.Module, args: Any, output: Any) -> Any:
        """Add the deepstack features of layer `i` to the visual columns that are left."""
        run = self.local.run
        if run is None or run.deepstack is None or i >= len(run.deepstack[1]):
            return None
        where = torch.where(run.columns < 0, -1, gather_columns(run.deepstack[0], run.columns, -1))
        features = run.deepstack[1][i].to(output.device, output.dtype)
        features = torch.cat([features, features.new_zeros(1, features.shape[1])])
        return output + features[torch.where(where < 0, features.shape[0] - 1, where).to(output.device)]


def _length(cache: Any) -> int:
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0


def _all_ids(lengths: list[int], device: torch.device) -> Tensor:
    """`[S, N]`: 0 .. n-1 for each span, -1 is padding."""
    ids = torch.arange(max(lengths, default=0), device=device).expand(len(lengths), -1)
    return torch.where(ids < torch.tensor(lengths, device=device, dtype=torch.long)[:, None], ids, -1)


def _no_spans(rows: int, device: torch.device) -> Batch:
    empty = torch.zeros(0, 0, dtype=torch.long, device=device)
    return Batch([], [], empty, torch.zeros(0, dtype=torch.long, device=device), {}, rows == 1, [])


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
