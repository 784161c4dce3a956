"""The hooks of the composite model: where a forward's placeholders are, and which pictures are fed to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import length_of
from vtc.models.cache.short_steps import ShortSteps
from vtc.models.layout.items_behind_placeholders import Fed, fed_of, fewer
from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import Call, need, signature_of, takes
from vtc.models.stock.sleeping_hooks import SleepingHooks
from vtc.models.stock.thread_gate import Traffic
from vtc.models.stock.tripwire import check_features
from vtc.pruners.signals import Signal

from .refused_arguments import warn_merged
from .thread_state import Local


class CompositeSide:
    """Hook bodies; ``Adapter`` says where they go.

    Parameters
    ----------
    parts : Parts
        The model's parts.
    inside_tower : bool
        Whether a method prunes inside the vision encoder.
    signals : set of Signal
        Declared by the pruners.
    keep_ids : bool
        Whether a method needs the prompt's token ids.
    local : Local
        Per-thread state.
    traffic : Traffic
        Who is inside the model.
    hooks : SleepingHooks
        What is set on the layers.
    """

    def __init__(
        self,
        parts: Parts,
        inside_tower: bool,
        signals: set[Signal],
        keep_ids: bool,
        local: Local,
        traffic: Traffic,
        hooks: SleepingHooks,
    ):
        self.parts, self.inside_tower, self.keep_ids = parts, inside_tower, keep_ids
        self.local, self.traffic, self.hooks = local, traffic, hooks
        self.encoder_signals = [s for s in signals if s.part == "encoder"]
        self.takes_features = takes(parts.core, "features")
        self.warned = False
        need(parts.core, "ids", "embeds", "mask")
        self.short = ShortSteps(parts.core, parts.lm)
        self.signature = signature_of(parts.core)

    def before(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a call of the composite model; a short step is prepared at once."""
        local, hooks = self.local, self.hooks
        if not (local.records or local.pending or local.inside or hooks.awake or hooks.stays):
            found = self.short.find(args, kwargs)
            if found is not False and self.traffic.enter():
                local.inside = local.short = True
                if found is True:
                    return None
                local.steady = found
                changed = self.short.begin(found, kwargs)
                return None if changed is None else (args, changed)
        return self.call(core, args, kwargs)

    def call(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the placeholders, if visual input came along."""
        pruned_before = self.inside_tower and any(record.steps for record in self.local.records.values())
        local = self.local
        local.clear()
        if not self.traffic.enter():
            raise RuntimeError(
                "another thread took vtc's hooks off this model, or wrapped it anew, while it was called: call it again"
            )
        local.inside = True
        local.called = call = Call(self.signature, args, kwargs)
        local.prompted = bool(pruned_before)
        features = call.get("features")
        if features is None or not (isinstance(features, Tensor) or any(v is not None for v in features.values())):
            return
        if not self.takes_features:
            raise NotImplementedError(
                "this version of transformers ignores mm_encoder_outputs: pass pixel_values, or upgrade it to 5.18"
            )
        local.fed = features

    def visual(self) -> dict[str, Tensor]:
        """Placeholders of the composite model's input, once it has encoded or been given features, whatever of."""
        pruned_before, self.local.prompted = self.local.prompted, None
        call = self.local.called
        if pruned_before is None or call is None:
            return {}
        if self.local.fed is None and not self.local.records:
            self.without_pictures(call, pruned_before)
            self.local.called = None
            return {}
        ids = call.get("ids")
        self.local.token_ids = ids if self.keep_ids else None
        return self.placeholders(ids, call.get("embeds"))

    def without_pictures(self, call: Call, pruned_before: bool) -> None:
        """Embeddings alone may be those of pictures, merged by the caller."""
        embeds = call.get("embeds")
        if not isinstance(embeds, Tensor) or embeds.shape[1] == 1 or length_of(call.get("cache")):
            return
        if pruned_before:
            raise NotImplementedError(
                "embeddings merged by the caller: pruning inside the vision encoder leaves zeros in the features, "
                "which only vtc can take out again. Pass pixel_values, or the features as mm_encoder_outputs"
            )
        if not self.warned:
            self.warned = True
            warn_merged()

    def after(self, core: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forget this forward, even when it raised."""
        local = self.local
        if local.short:
            local.short = local.inside = False
            steady, local.steady = local.steady, None
            if steady is not None:
                steady.end()
            self.traffic.leave()
            return
        inside, unseen = local.inside, output is not None and not local.opened and local.unused_features()
        local.clear()
        if inside:  # else a hook before ours failed
            self.traffic.leave()
        if unseen:
            check_features(core)

    def placeholders(self, ids: Tensor | None, embeds: Tensor | None) -> dict[str, Tensor]:
        """Per modality `[B, L]` bool: where ids, or else embeddings, are its placeholder's."""
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

    def as_fed(self, masks: dict[str, Tensor]) -> dict[str, Fed]:
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
            fed[modality] = fed_of(self.parts, modality, output, (self.local.encoded or {}).get(modality))
        called = self.local.called
        told = None if called is None else called.get("video tokens")
        if "video" in fed and told is not None:
            fed["video"] = fewer(fed["video"], told)
        for one in fed.values():
            missing = [s for s in self.encoder_signals if s not in one.record.signals]
            if missing or (self.inside_tower and not one.record.steps):
                raise ValueError(
                    "these mm_encoder_outputs were computed outside this wrapped model, so what the pruner needs "
                    f"of the encoder ({', '.join(map(str, missing)) or 'pruning inside it'}) is not there: compute "
                    "them with the wrapped model's get_image_features, or pass pixel_values"
                )
        return fed
