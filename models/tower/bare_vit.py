"""Pruning inside a bare vision transformer of timm or open_clip, which has no language model behind it.

Dropped patches are gone for good: the following blocks run on fewer tokens, and the head pools what is left (class
token, mean or attention pooling alike). ``forward_features`` therefore gives `[B, prefix + kept, D]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.spans import Batch, Span
from vtc.models.layout.vision_call_record import VisionStep
from vtc.models.selection.report import Report
from vtc.models.selection.stopwatch import Timing
from vtc.models.stock.per_thread import ThreadState, refuse_copy
from vtc.models.stock.thread_gate import traffic
from vtc.pruners.base import Pruner, Stop, check_layer
from vtc.pruners.signals import EncoderAttention, EncoderSegments, EncoderSignal, PreProjector

from .captures_needed import kind_of, layer_of
from .refusals import QUERIES
from .signals_from_attention import encoder_rows
from .vit_run import VitRun


def _kind(model: Any) -> str | None:
    for cls in type(model).__mro__:
        if cls.__name__ == "VisionTransformer":
            root = cls.__module__.split(".")[0]
            if root in ("timm", "open_clip"):
                return root
    return None


def _takes_a_bias(block: Any) -> bool:
    attention = block.attn
    return isinstance(attention, nn.MultiheadAttention) or "attn_mask" in signature(attention.forward).parameters


def find_vit(model: Any) -> Any:
    """The timm or open_clip ``VisionTransformer`` that `model` is, or that is its image side (``model.visual``)."""
    for candidate in (model, getattr(model, "visual", None), getattr(getattr(model, "visual", None), "trunk", None)):
        if candidate is not None and _kind(candidate):
            return candidate
    return None


def is_vit(model: Any) -> bool:
    """Whether `model` is a vision transformer (or an open_clip model with one) that ``VitAdapter`` can prune."""
    return isinstance(model, nn.Module) and find_vit(model) is not None


GRIDS = "forward_intermediates"


def _refuse_grids(method: Any) -> Any:
    """The method, but an error where it would lay out what is left of the patches as a picture."""
    parameters = signature(method)

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        bound = parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        layout = bound.arguments.get("output_fmt", bound.arguments.get("image_output_fmt", "NLC"))
        if layout == "NCHW":
            raise NotImplementedError(
                f"{GRIDS}: a pruned ViT has no full grid of patches (output_fmt='NCHW', reshape=True). Ask for 'NLC': "
                "every layer gives [B, tokens left, D], and model.vtc.report says which; or call vtc.restore(model)"
            )
        return method(*args, **kwargs)

    return checked


def _refuse_masks(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
        raise NotImplementedError(
            "attn_mask and is_causal are meant for all patches, and a pruned ViT runs on those left: leave them out, "
            "or call vtc.restore(model) first"
        )


class VitAdapter:
    """A pipeline of vision-stage methods attached to a bare ViT.

    Parameters
    ----------
    model : nn.Module
        What ``is_vit`` says yes to.
    pruners : iterable of Pruner
        The methods; each stop must be at the vision stage.

    Attributes
    ----------
    steps : list of VisionStep
        What the last forward of any thread kept: per step one tensor of sorted patch ids for each image.
    """

    def __init__(self, model: nn.Module, pruners: Iterable[Pruner]):
        vit = find_vit(model)
        if vit is None:
            raise NotImplementedError(f"{type(model).__name__} is no timm or open_clip VisionTransformer")
        self.vit, self.timm = vit, _kind(vit) == "timm"
        self.blocks = list(vit.blocks if self.timm else vit.transformer.resblocks)
        self.prefix = int(vit.num_prefix_tokens) if self.timm else 1
        self.class_token = not self.timm or vit.cls_token is not None  # else all of them are registers
        self.batch_first = self.timm or bool(getattr(vit.transformer, "batch_first", False))
        self.timing: Timing = False
        self.steps: list[VisionStep] = []
        self.stops: dict[int, list[tuple[Pruner, Stop]]] = {}
        self.needs: dict[int, set[str]] = {}
        self.done: dict[int, list[tuple[str, int]]] = {}
        self._last: VitRun | None = None
        self._local: Any = ThreadState()
        self.traffic = traffic()
        self._handles: list[Any] = []
        depth = len(self.blocks)
        last_read: dict[tuple[str, int], int] = {}  # before which block
        for pruner in pruners:
            for stop in (s for given in pruner.stops(depth) for s in pruner.tower_stops(given, depth - 1)):
                layer = self._check(pruner, stop)
                self.stops.setdefault(layer, []).append((pruner, stop))
                for signal in pruner.signals_at(stop):
                    if isinstance(signal, EncoderSegments):
                        continue  # all patches of an image see each other
                    captured = kind_of(signal, self.class_token), layer_of(signal, layer - 1, depth)
                    self.needs.setdefault(captured[1], set()).add(captured[0])
                    last_read[captured] = max(layer, last_read.get(captured, 0))
        for captured, layer in last_read.items():
            self.done.setdefault(layer, []).append(captured)

    def _check(self, pruner: Pruner, stop: Stop) -> int:
        name, depth = pruner.spoken_name, len(self.blocks)
        check_layer(stop.layer, name)
        if stop.stage != "vision":
            raise ValueError(
                f"{name} prunes at the {stop.stage} stage, but a bare ViT has no language model; "
                "use a method of the vision stage, e.g. \"random(at='vision', layer=4)\""
            )
        if not stop.keep:
            raise ValueError(f"{name} needs keep: an int >= 1 (tokens per image) or a float in (0, 1]")
        if pruner.adaptive_count:
            raise NotImplementedError(f"{name} keeps a varying number of tokens, which a bare ViT can't run yet")
        if pruner.merges and not all(map(_takes_a_bias, self.blocks)):
            raise NotImplementedError(f"{name} merges tokens, and this ViT's attention takes no mask for their sizes")
        layer = -1 if stop.layer is None else stop.layer if stop.layer >= 0 else depth + stop.layer
        if not 0 <= layer < depth:
            raise ValueError(f"{name}: layer={stop.layer} is out of range; this ViT has layers 0 to {depth - 1}")
        for signal in pruner.signals_at(stop):
            if not isinstance(signal, EncoderSignal) or isinstance(signal, PreProjector):
                raise NotImplementedError(f"{name} reads {signal}, which a bare ViT does not have")
            if isinstance(signal, EncoderAttention) and signal.queries not in QUERIES:
                raise ValueError(
                    f"EncoderAttention.queries must be one of {', '.join(QUERIES)}, got {signal.queries!r}"
                )
            if isinstance(signal, EncoderAttention) and signal.queries == "cls" and not self.class_token:
                raise NotImplementedError(
                    f"{name} reads {signal}, but this ViT has no class token; use queries='received'"
                )
            if not 0 <= layer_of(signal, layer - 1, depth) < layer:
                raise ValueError(f"{name} prunes before layer {layer} and can't read {signal}: it comes later")
        return layer

    def attach(self) -> VitAdapter:
        """Set the hooks."""
        self.traffic.shut()
        self.vit.__dict__["__reduce_ex__"] = refuse_copy  # else pickle stumbles over some hook and names only that
        eager = torch.compiler.disable  # torch.compile must break its graph here, not trace our state
        self._handles.append(self.vit.register_forward_pre_hook(eager(self._open)))
        self._handles.append(self.vit.register_forward_hook(eager(self._close), always_call=True))
        # timm's forward_features and open_clip's inner parts can be called by themselves: the first block opens too
        self._handles.append(self.blocks[0].register_forward_pre_hook(eager(partial(self._enter, 0))))
        self._handles.append(self.blocks[0].register_forward_pre_hook(_refuse_masks, with_kwargs=True))
        if hasattr(self.vit, GRIDS):
            self.vit.__dict__[GRIDS] = _refuse_grids(getattr(self.vit, GRIDS))
        for i, block in enumerate(self.blocks):
            if i and i in self.stops:
                self._handles.append(block.register_forward_pre_hook(eager(partial(self._enter, i))))
            kinds = self.needs.get(i, set())
            if "features" in kinds:
                self._handles.append(block.register_forward_hook(eager(partial(self._leave, i))))
            if kinds - {"features"}:
                attn = block.attn
                if isinstance(attn, nn.MultiheadAttention):
                    self._handles.append(attn.register_forward_pre_hook(eager(partial(self._packed, i))))
                elif hasattr(attn, "qkv"):
                    self._handles.append(attn.qkv.register_forward_hook(eager(partial(self._projected, i, attn))))
                else:
                    raise NotImplementedError(f"vtc can't read keys and queries of {type(attn).__name__}")
            if any(p.merges for j, entries in self.stops.items() if j <= i for p, _ in entries):
                self._handles.append(block.attn.register_forward_pre_hook(eager(self._bias), with_kwargs=True))
        torch.compiler.reset()  # a graph made without the hooks would be run on, and nothing pruned
        self.traffic.open()
        return self

    def detach(self) -> None:
        """Remove every hook, when no thread is inside the model."""
        self.traffic.shut()
        self.vit.__dict__.pop("__reduce_ex__", None)
        self.vit.__dict__.pop(GRIDS, None)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.traffic.gone()
        torch.compiler.reset()

    def report(self) -> Report | None:
        """The last forward's spans (one per image) and steps; of this thread, or of any if this one ran none."""
        run = getattr(self._local, "last", None) or self._last
        if run is None:
            return None
        images = len(run.ids)
        columns = torch.arange(run.prefix, run.prefix + run.total).expand(images, -1)
        spans = [Span(i, i, "image", 0) for i in range(images)]
        rows = torch.arange(images)
        layouts = [run.layout] * images
        batch = Batch(spans, [run.total] * images, columns, rows, {}, False, [], [False] * images, layouts)
        found = Report(0, batch)
        for step in run.steps:
            found.add("vision", step.layer, torch.stack(step.kept), [len(k) for k in step.kept])
        return found

    # ------------------------------------------------------------------ hooks

    def _open(self, module: nn.Module, args: Any) -> None:
        self._local.run = None
        self._local.inside = self.traffic.enter()

    def _close(self, module: nn.Module, args: Any, output: Any) -> None:
        self._local.run = None
        if getattr(self._local, "inside", False):
            self._local.inside = False
            self.traffic.leave()

    def _enter(self, i: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0] if self.batch_first else args[0].transpose(0, 1)
        if i == 0:
            new = VitRun(self.vit, x, self.prefix, self.class_token, len(self.blocks))
            self._local.run = self._local.last = self._last = new
            self.steps = new.steps
        run: VitRun | None = getattr(self._local, "run", None)
        if run is None:  # a checkpoint's second forward
            raise NotImplementedError("pruning does not work with gradient checkpointing in a ViT; switch it off")
        for pruner, stop in self.stops.get(i, ()):
            x = run.prune(pruner, stop, i, x)
        for captured in self.done.get(i, ()):
            run.captured.pop(captured, None)
        return (x if self.batch_first else x.transpose(0, 1), *args[1:])

    def _leave(self, i: int, block: nn.Module, args: Any, output: Tensor) -> None:
        run: VitRun | None = getattr(self._local, "run", None)
        if run is not None:
            run.capture("features", i, (output if self.batch_first else output.transpose(0, 1))[:, :, None])

    def _bias(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the logarithm of what merged tokens stand for to the logits towards them."""
        run: VitRun | None = getattr(self._local, "run", None)
        if run is None or run.size is None:
            return None
        bias = nn.functional.pad(run.size.log(), (run.prefix, 0)).to(args[0].dtype)
        if isinstance(module, nn.MultiheadAttention):
            return args, {**kwargs, "key_padding_mask": bias}
        return args, {**kwargs, "attn_mask": bias[:, None, None]}

    def _packed(self, i: int, module: Any, args: tuple[Any, ...]) -> None:
        """Of ``nn.MultiheadAttention``, which projects inside: the projection is made again."""
        run: VitRun | None = getattr(self._local, "run", None)
        if run is not None:
            x = args[0] if self.batch_first else args[0].transpose(0, 1)
            qkv = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
            self._read(run, i, *(t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1)))

    def _projected(self, i: int, attention: Any, module: Any, args: Any, output: Tensor) -> None:
        """Of timm's attention, whose projection `output` is taken as it comes."""
        run: VitRun | None = getattr(self._local, "run", None)
        if run is not None:
            q, k, v = output.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            self._read(run, i, attention.q_norm(q), attention.k_norm(k), v)

    def _read(self, run: VitRun, i: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        scale = q.shape[-1] ** -0.5
        for kind in self.needs[i] - {"features"}:
            found = encoder_rows(kind, q, k, v, None, scale)
            per_patch = kind.endswith(("queries", "keys", "values")) and " of " not in kind
            run.capture(kind, i, found[:, :, None] if per_patch else found)
