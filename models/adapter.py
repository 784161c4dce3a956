"""Attaches a pruning pipeline to a stock model: which hooks are set where, and how they are removed again.

One adapter serves every family, because they all do the same: encode images, put the features over placeholder
embeddings, call the text model with full, consistent lengths. So pruning happens at the border of the text model and of
its layers, with plain torch hooks (they survive accelerate's dispatch), and nothing else of the model is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.compiled.hooks_by_compiling import by_compiling, traced, uncompiled
from vtc.models.compiled.planned_layers import Planner
from vtc.models.compiled.static_prompts import StaticPrompts
from vtc.models.language.composite_hooks import CompositeSide
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.decoder_signals import resolve
from vtc.models.language.positions import several_axes
from vtc.models.language.refused_arguments import continuous_methods, refuse_continuous
from vtc.models.language.run_and_report_step import Steps
from vtc.models.language.text_hooks import TextSide
from vtc.models.language.thread_state import Local
from vtc.models.layout.model_parts import Parts
from vtc.models.loans.loan_hooks import Loans
from vtc.models.selection.report import Report
from vtc.models.selection.stopwatch import Timing
from vtc.models.stock.attention_taps import AttentionTap
from vtc.models.stock.call_arguments import Signature, takes
from vtc.models.stock.hooks_outside_checkpoint import LayerHooks, arm
from vtc.models.stock.per_thread import refuse_copy
from vtc.models.stock.sleeping_hooks import SleepingHooks
from vtc.models.stock.thread_gate import traffic
from vtc.models.stock.tokenizer import Words
from vtc.models.tower.tower_hooks import VisionSide
from vtc.models.tower.videos_as_images import VideosAsImages
from vtc.pruners.base import Pruner
from vtc.pruners.signals import QuestionState, Signal

from .facts_of_model import facts_of
from .guarded_generate import guarded_generate
from .pipeline_stops import plan
from .refused_beams import EXPAND, guarded_expansion, repeats_pictures_one_by_one

MARK = "_vtc_adapter"


class Adapter:
    """A pipeline attached to a model.

    Parameters
    ----------
    parts : Parts
        Where to hook.
    pruners : iterable of Pruner
        The pipeline.
    positions : {"keep", "compact"}
        Whether kept tokens keep their original position ids, or are renumbered without gaps (1-D rotary only; input
        and vision stages).
    """

    def __init__(self, parts: Parts, pruners: Iterable[Pruner], positions: str = "keep"):
        if positions not in ("keep", "compact"):
            raise ValueError(f"positions must be 'keep' or 'compact', got {positions!r}")
        if positions == "compact" and several_axes(parts.lm.config):
            raise ValueError("positions='compact' is not defined for multi-dimensional rotary positions; use 'keep'")
        self.parts, self.positions = parts, positions
        pruners = tuple(pruners)
        calibrating = [p.spoken_name for p in pruners if p.calibrates]
        if calibrating and positions == "compact":
            raise ValueError(f"{calibrating[0]} needs the original positions; use positions='keep'")
        if len(calibrating) > 1:
            raise ValueError(f"{' and '.join(calibrating)}: attention can be calibrated once in a pipeline")
        facts = facts_of(parts)
        for pruner in pruners:
            pruner.check_model(facts)
        depth = len(parts.layers)
        self.stops = plan(pruners, depth)
        # what is read inside the encoder is served there
        behind = [(p, stop) for p, stop in self.stops if stop.stage != "vision"]
        signals: set[Signal] = {resolve(s, stop.layer) for p, stop in behind for s in p.signals_at(stop)}
        self.local, self.words, self.traffic = Local(), Words(parts.model), traffic()
        self.steps = Steps(parts, self.local)
        self.hooks = SleepingHooks()
        in_tower = [(p, stop) for p, stop in self.stops if stop.stage == "vision"]
        asks = any(p.uses_question for p, _ in self.stops) or any(isinstance(s, QuestionState) for s in signals)
        keep_ids = asks or any(p.joins_crops for p, _ in self.stops)
        self.composite = CompositeSide(parts, bool(in_tower), signals, keep_ids, self.local, self.traffic, self.hooks)
        words = self.words if asks else None
        self.text = TextSide(self.composite, self.stops, signals, positions, self.steps, words)
        self.decoder = DecoderSide(parts, self.stops, signals, self.steps, self.local)
        self.loans = Loans(parts, self.stops, self.decoder)
        self.planner = Planner(self.decoder, self.hooks)
        self.text.static = StaticPrompts(self.decoder, [s for _, s in self.stops], positions)
        self.vision = VisionSide(parts, in_tower, {s for s in signals if s.part == "encoder"})
        self._undo: list[Callable[[], object]] = []

    def attach(self) -> Adapter:
        """Set the hooks.

        Raises
        ------
        RuntimeError
            If the model is hooked by another adapter.
        """
        core = self.parts.core
        if MARK in core.__dict__:
            raise RuntimeError(
                f"this {type(core).__name__} is already wrapped by vtc (perhaps through an outer model); "
                "call vtc.restore(...) on that one first"
            )
        core.__dict__[MARK] = self
        self._undo.append(lambda: core.__dict__.pop(MARK, None))
        self.traffic.shut()  # a forward that another thread has begun does not see half of the hooks
        try:
            self._attach()
        except BaseException:
            self._remove()
            raise
        self.traffic.open()
        return self

    def _attach(self) -> None:
        self._hook_models()
        self._hook_layers()
        self._hook_inside_layers()
        self._undo.append(self.hooks.stay)  # what is off is not removed
        videos = VideosAsImages(self.parts.core)
        self._undo.append(videos.detach)
        for modality in ("image", "video"):
            self._wrap_features(f"get_{modality}_features", modality, videos)
        self.vision.attach()
        self._undo.append(self.vision.detach)
        self._wrap_methods()

    def _hook_models(self) -> None:
        core, lm, text = self.parts.core, self.parts.lm, self.text
        either = functools.partial(by_compiling, self.hooks)
        before = either(self.composite.before, self.composite.call)
        self._hook(core.register_forward_pre_hook(before, with_kwargs=True))
        self._hook(core.register_forward_hook(either(self.composite.after), with_kwargs=True, always_call=True))
        compiled = self.planner.behind(text.before)
        if self.loans.at or self.decoder.calibrating:
            compiled = self.loans.refuse_compiled if self.loans.at else self.decoder.refuse_compiled
        self._hook(lm.register_forward_pre_hook(either(text.before, compiled), with_kwargs=True))
        self._hook(lm.register_forward_hook(either(text.after), with_kwargs=True, always_call=True))

    def _hook_layers(self) -> None:
        lm, layers, d = self.parts.lm, self.parts.layers, self.decoder
        behind = [None] * (len(layers) - 1) + [d.last_layer_post if takes(lm, "deepstack") else None]
        after = [self.loans.after(i, hook) for i, hook in enumerate(behind)]
        hooks = [
            LayerHooks(
                layer,
                self.local,
                functools.partial(d.layer_pre, i),
                after[i],
                functools.partial(self.planner.before, i),
                after[i] and self.planner.after,
                self.loans.carry if i in self.loans.at else None,
            ).attach()
            for i, layer in enumerate(layers)
        ]
        self._undo += [h.detach for h in hooks]
        self.hooks.add(*(handle for h in hooks for handle in h.handles))
        if any(h.stands_in for h in hooks):
            self._hook(lm.register_forward_pre_hook(torch.compiler.disable(functools.partial(arm, hooks))))

    def _hook_inside_layers(self) -> None:
        d = self.decoder
        for module in self.loans.ends:
            # stays: a backward pass may run a checkpointed layer anew after a forward that needed no hook
            self._hook(module.register_forward_hook(uncompiled(self.loans.scale)))
        for i in d.tapped_layers():
            tap = AttentionTap(d.calls.mixers[i], functools.partial(d.attention, i)).attach()
            self._undo.append(tap.detach)
            self.hooks.tap(tap)
        for i in d.watched_layers():
            mixer = d.calls.mixers[i]
            if mixer is not None:
                hook = uncompiled(functools.partial(d.watch, i))
                self._hook(mixer.register_forward_pre_hook(hook, with_kwargs=True), sleeps=True)
        for place, module in d.sublayers():
            hook = traced(functools.partial(self.planner.transition, place), functools.partial(d.transition, place))
            self._hook(module.register_forward_hook(hook, with_kwargs=True), sleeps=True)

    def _wrap_methods(self) -> None:
        model, core, lm = self.parts.model, self.parts.core, self.parts.lm
        if hasattr(model, "generate"):
            self._shadow(model, "generate", functools.partial(guarded_generate, self.local, self.traffic))
            for name in continuous_methods(model):
                self._shadow(model, name, functools.partial(refuse_continuous, name))
            if repeats_pictures_one_by_one(self.parts):
                self._shadow(model, EXPAND, functools.partial(guarded_expansion, self.composite.placeholders))
        for owner in {id(m): m for m in (model, core, lm)}.values():
            # else pickle stumbles over some hook and names only that
            self._shadow(owner, "__reduce_ex__", lambda _: refuse_copy)

    def detach(self) -> None:
        """Remove everything that ``attach`` set, when no thread is inside the model.

        Raises
        ------
        RuntimeError
            If one does not come out of it, or this is called from inside; the hooks stay.
        """
        self.traffic.shut()
        self._remove()

    def _remove(self) -> None:
        while self._undo:
            self._undo.pop()()
        self.traffic.gone()

    def report(self) -> Report | None:
        """Report of this thread's last prefill, or of the last one at all."""
        return self.local.report or self.steps.last_report

    @property
    def timing(self) -> Timing:
        """Whether selection time is measured, and by which clock."""
        return self.steps.timing

    @timing.setter
    def timing(self, on: Timing) -> None:
        self.steps.timing = self.vision.timing = on

    def _hook(self, handle: Any, sleeps: bool = False) -> None:
        self._undo.append(handle.remove)
        if sleeps:
            self.hooks.add(handle)

    def _shadow(self, owner: nn.Module, name: str, wrap: Callable[[Any], Any]) -> None:
        """Shadow the method `name` by an instance attribute, which keeps signature and class untouched."""
        method = getattr(owner, name)
        before = owner.__dict__.get(name)
        owner.__dict__[name] = wrap(method)

        def undo() -> None:
            if before is None:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = before

        self._undo.append(undo)

    def _wrap_features(self, name: str, of: str, videos: VideosAsImages) -> None:
        if getattr(self.parts.core, name, None) is None:
            return
        local, vision = self.local, self.vision

        def wrap(method: Any) -> Any:
            signature = Signature(method)

            @functools.wraps(method)  # generate() reads the signature
            def features(*args: Any, **kwargs: Any) -> Any:
                modality = videos.modality(of)
                output, record = vision.record(
                    modality, signature.by_name(args, kwargs), lambda: method(*args, **kwargs)
                )
                if record is None:  # Qwen3-VL's videos go through get_image_features: the outer call records them
                    return output
                local.records[modality] = record
                if local.encoded is not None:
                    local.encoded[modality] = record
                    local.pending = True
                # generate() carries the output into the prefill; a forward feeds it at once
                if not local.inside and not isinstance(output, (tuple, list, Tensor)):
                    output._vtc = record
                return output

            return features

        self._shadow(self.parts.core, name, wrap)
