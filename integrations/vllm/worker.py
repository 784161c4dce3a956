"""The worker: encodes pictures, prunes them, and gives the engine as many rows as it has placeholders for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtc.models.layout.crops_by_family import small_crops
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.pipeline_text import Pipeline
from vtc.pruners.signals import PreProjector, Signal

from .families import Row
from .host_parts import parts_of, spare
from .item_fields import ItemFields, chunks, cut_items, split_fields
from .kept_memory import Kept, KeptMemory
from .positions import as_channels
from .refusals import refuse_engine, refuse_tower
from .selection import Picture, select
from .settings import DEPTH, EngineSettings, kept_counts, unpacked
from .tower_signals import TowerSignals, last_read, layers_read

WHOLE = -1  # the choice of a dummy request, of which all is kept


def signals_of(pipeline: Pipeline) -> tuple[Signal, ...]:
    """What the methods of a pipeline read."""
    return tuple(dict.fromkeys(s for p in pipeline for stop in p.stops(DEPTH) for s in p.signals_at(stop)))


class PrunedModel:
    """A mixin in front of a family's model class; ``row`` says what is known of the family."""

    row: Row

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        settings = EngineSettings.read(getattr(config, "vtc", None))
        refuse_engine(vllm_config, settings, self.row)
        signals = [s for pipeline in settings.pipelines for s in signals_of(pipeline)]
        with _whole_tower(config, bool(self.row.cut_tower and _beyond(signals, config))) as layer:
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if layer is not None:
            self.select_layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
        # a plain object: its parts are modules of ours already
        self.__dict__["pruning"] = ImagePruning(self, vllm_config, settings)

    def load_weights(self, weights: Any) -> Any:
        """Load as ever; a method that reads the projector's weights must find them."""
        found = super().load_weights(weights)  # type: ignore[misc]
        pruning: ImagePruning = self.__dict__["pruning"]
        pruning.keep_projector()
        return found

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: Any) -> Any:
        layers = getattr(self, "select_layers", None)
        if layers is None:
            return super()._image_pixels_to_features(vision_tower, pixel_values)  # type: ignore[misc]
        strategy = self.config.vision_feature_select_strategy  # type: ignore[attr-defined]
        return vision_tower(pixel_values, select_layers=layers, feature_select_strategy=strategy)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Rows of each item: pruned ones of pictures, stock ones of videos."""
        given, items = split_fields(kwargs)
        if not items:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        pruning: ImagePruning = self.__dict__["pruning"]
        found: list[Tensor] = []
        flat = self.row.flat(given)
        for some in chunks([sum(item.lengths) for item in items], pruning.limit):
            part = cut_items(given, some, len(items), flat)
            run = partial(super().embed_multimodal, **part)  # type: ignore[misc]
            found += pruning.encode(run, part, items[some.start : some.stop])
        return tuple(found)


class ImagePruning:
    """Pruning of one engine's pictures.

    Parameters
    ----------
    model : nn.Module
        The engine's.
    vllm_config : VllmConfig
        Its configuration.
    settings : EngineSettings
        What the server says.

    Attributes
    ----------
    limit : int
        Tokens before pruning that the tower may run at once.
    width : int
        Channels of a row of features, all that goes with a token included.
    memory : KeptMemory
        What was chosen of the pictures seen.
    """

    def __init__(self, model: Any, vllm_config: Any, settings: EngineSettings):
        self.settings = settings
        self.row: Row = model.row
        config = vllm_config.model_config.hf_config
        tower = getattr(model, self.row.tower)
        self.parts = parts_of(model, config, tower)
        signals = [s for pipeline in settings.pipelines for s in signals_of(pipeline)]
        refuse_tower(vllm_config, self.parts, settings, signals)
        self.tower = TowerSignals(self.parts, signals)
        self.limit = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)
        self.hidden = int(config.get_text_config().hidden_size)
        self.width = self.hidden * (1 + int(getattr(model, "deepstack_num_level", 0)))
        self.memory = KeptMemory()
        self._pipelines: dict[tuple[float, ...], Pipeline] = {}
        self._words: Any = None
        self._model_config = vllm_config.model_config
        self._on_cpu = vllm_config.device_config.device_type == "cpu"

    def keep_projector(self) -> None:
        """Keep what the engine would repack, where methods may read it."""
        if self._on_cpu and any(isinstance(s, PreProjector) for s in self.tower.signals):
            spare(self.parts.core.model.get_submodule(self.parts.family.projector))

    def pipeline(self, item: ItemFields) -> Pipeline:
        """What an item is pruned with; nothing for a dummy."""
        key = tuple(item.settings)
        if key not in self._pipelines:
            choice, keep = unpacked(item.settings)
            self._pipelines[key] = () if choice == WHOLE else self.settings.pipeline(choice, keep)
        return self._pipelines[key]

    def encode(self, run: Any, given: dict[str, Any], items: Sequence[ItemFields]) -> list[Tensor]:
        """Rows left of `items`, which `run` encodes at once from `given`."""
        lengths = [n for item in items for n in item.lengths]
        call = VisionCall(self.parts.core, "image", given, lengths)
        # held here too: the memory may be too small for all of these
        chosen = {item.key: self.memory.get(item.key) for item in items if self._prunes(item)}
        fresh = [i for i, item in enumerate(items) if item.key in chosen and chosen[item.key] is None]
        dummies = [i for i, item in enumerate(items) if unpacked(item.settings)[0] == WHOLE]
        needed = self.settings.pipelines if dummies else [self.pipeline(items[i]) for i in fresh]
        signals = [s for pipeline in needed for s in signals_of(pipeline)]
        with self.tower.watching(call, signals) as seen:
            rows = [r.reshape(-1, r.shape[-1]) for r in run()]
        for row, item in zip(rows, items, strict=True):
            if len(row) != sum(item.lengths):
                raise RuntimeError(
                    f"the vision tower gave {len(row)} tokens of a picture for which {sum(item.lengths)} were counted"
                )
        for pipeline in needed if dummies else ():  # at the engine's start: what can't run fails there
            self._chosen(pipeline, dummies[:1], rows, items, call, seen)
        groups: dict[tuple[float, ...], list[int]] = {}
        for i in fresh:
            groups.setdefault(tuple(items[i].settings), []).append(i)
        for group in groups.values():
            kept = self._chosen(self.pipeline(items[group[0]]), group, rows, items, call, seen)
            for i, one in zip(group, kept, strict=True):
                chosen[items[i].key] = one
                self.memory.put(items[i].key, one)
        return [
            self._left(row, item, chosen.get(item.key) or Kept(torch.arange(len(row))), i, call)
            for i, (row, item) in enumerate(zip(rows, items, strict=True))
        ]

    def _prunes(self, item: ItemFields) -> bool:
        pipeline = self.pipeline(item)
        return kept_counts(pipeline, item.lengths) != list(item.lengths)

    def _chosen(
        self,
        pipeline: Pipeline,
        group: Sequence[int],
        rows: Sequence[Tensor],
        items: Sequence[ItemFields],
        call: VisionCall,
        seen: dict[Signal, list[Tensor]],
    ) -> list[Kept]:
        """What a pipeline leaves of the items `group`, looked at together."""
        layouts = self.parts.family.layouts_of(call)
        starts = [0]
        for item in items:
            starts.append(starts[-1] + len(item.lengths))
        spans = [s for i in group for s in range(starts[i], starts[i + 1])]
        record = VisionRecord(
            "image",
            [call.lengths[s] for s in spans],
            lambda: [layouts[s] for s in spans],
            {signal: [seen[signal][s] for s in spans] for signal in signals_of(pipeline) if signal in seen},
            may_have_newlines=self.parts.family.newlines,
            small=partial(_small, call.given("image"), spans),
        )
        pictures = [self._picture(pipeline, rows[i], items[i]) for i in group]
        return select(pipeline, pictures, record, self.parts)

    def _picture(self, pipeline: Pipeline, rows: Tensor, item: ItemFields) -> Picture:
        features = list(rows[:, : self.hidden].split(item.lengths))
        if item.text is None:
            return Picture(features)
        around = item.around
        question = self._tokenizer().decode(around.question, skip_special_tokens=True).strip()
        if not any(p.uses_text for p in pipeline):
            return Picture(features, question=question)
        before, after = (
            self.parts.lm.embed(torch.tensor(ids, dtype=torch.long, device=rows.device)).to(rows.dtype)
            for ids in (around.before, around.after)
        )
        return Picture(features, before, after, question)

    def _tokenizer(self) -> Any:
        if self._words is None:
            from vllm.tokenizers import cached_tokenizer_from_config

            self._words = cached_tokenizer_from_config(self._model_config)
        return self._words

    def _left(self, rows: Tensor, item: ItemFields, kept: Kept, place: int, call: VisionCall) -> Tensor:
        """What is left of an item's rows; with their places in the picture where positions need them."""
        ids = kept.ids.to(rows.device)
        if len(ids) != sum(kept_counts(self.pipeline(item), item.lengths)):
            raise RuntimeError(f"{len(ids)} tokens of a picture are left, not as many as have placeholders")
        found = rows[ids]
        if kept.vectors is not None:
            found = torch.cat([kept.vectors.to(found), found[:, self.hidden :]], 1)
        if not self.row.rotary:
            return found
        assert call.grids is not None
        cols = call.grids[place][2] // self.parts.config.vision_config.spatial_merge_size
        return torch.cat([found, as_channels(ids, cols, found)], 1)


def _small(pixels: Any, spans: Sequence[int]) -> Tensor | None:
    """The crops of `spans` as small pictures."""
    found = small_crops(pixels)
    return None if found is None else found[list(spans)]


def _beyond(signals: Sequence[Signal], config: Any) -> bool:
    """Whether any of `signals` is of a layer behind the one that the projector reads."""
    return any(layer > last_read(config) for layer in layers_read(signals, config))


@contextmanager
def _whole_tower(config: Any, wanted: bool) -> Iterator[Any]:
    """While this is open, a family that loads its tower only as far as its projector reads it loads all of it."""
    layer = getattr(config, "vision_feature_layer", None)
    if not wanted:
        yield None
        return
    config.vision_feature_layer = -1
    try:
        yield layer
    finally:
        config.vision_feature_layer = layer
