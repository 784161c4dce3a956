"""What is left of each picture in front of the language model, for an engine that is fed embeddings."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.language.forward_state import Run
from vtc.models.language.positions import several_axes
from vtc.models.stock.call_arguments import call_of, takes

from .adapter import Adapter

BESIDE = ("deepstack", "injected", "per-layer inputs", "token types")  # of pictures, fed beside their embeddings


class _Taken(Exception):
    """The embeddings are there; the language model need not run."""


def kept_embeddings(adapter: Adapter, inputs: Mapping[str, Any]) -> list[list[Tensor]]:
    """See ``vtc.embed``."""
    _refuse(adapter)
    parts, local, thread = adapter.parts, adapter.local, threading.get_ident()
    taken: list[list[list[Tensor]]] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            embeds = call_of(module, args, kwargs).get("embeds")
            taken.append(_of_each_picture(adapter, local.run or local.untouched, embeds))
            raise _Taken

    # behind the adapter's own hook: it sees what is left
    hook = parts.lm.register_forward_pre_hook(torch.compiler.disable(take), with_kwargs=True)
    try:
        with torch.no_grad():
            parts.model(**inputs)
    except _Taken:
        return taken[0]
    finally:
        hook.remove()
    raise RuntimeError(f"{type(parts.model).__name__} never called its {type(parts.lm).__name__}")


def _refuse(adapter: Adapter) -> None:
    late = [pruner for pruner, stop in adapter.stops if stop.stage == "decoder"]
    if late:
        raise NotImplementedError(
            f"{late[0].spoken_name} drops tokens inside the language model, which an engine that is fed embeddings "
            "does not: use a method of the input stage (vtc pruners)"
        )
    lm = adapter.parts.lm
    beside = [meaning for meaning in BESIDE if takes(lm, meaning)]
    if beside or several_axes(lm.config):
        raise NotImplementedError(
            f"{type(lm).__name__} is given {beside[0] if beside else 'positions of several axes'} beside the "
            "embeddings of pictures, so embeddings alone are not enough: use vtc's plugin for vLLM, or `vtc serve`"
        )
    if adapter.positions != "compact":
        raise ValueError(
            "an engine numbers the embeddings that it is fed without gaps, and this model is wrapped with "
            f"positions={adapter.positions!r}: wrap it with positions='compact', so that both give the same answers"
        )


def _of_each_picture(adapter: Adapter, run: Run | None, embeds: Tensor | None) -> list[list[Tensor]]:
    """Per row and picture what is left of it among `embeds` `[B, n, D]`."""
    if run is None or embeds is None or not run.batch.spans:
        raise ValueError("there is no picture in these inputs: pass what the processor made of text and pictures")
    window = min((w for w in adapter.decoder.windows.now() if w is not None), default=run.full)
    if run.full > window:
        raise NotImplementedError(
            f"this prompt has {run.full} tokens and some layers see {window} back: vtc counts dropped tokens there, as "
            "the model was trained, and an engine fed with embeddings does not. Use a shorter prompt, or `vtc serve`"
        )
    found: list[list[Tensor]] = [[] for _ in embeds]
    for span, n, columns in zip(run.batch.spans, run.batch.lengths, run.batch.columns, strict=True):
        if int(columns[n - 1] - columns[0]) != n - 1:
            raise NotImplementedError(
                "the text of this prompt goes on inside a picture (markers of its rows), so that its embeddings are no "
                "run that an engine could put in one place: use `vtc serve`"
            )
        own = torch.isin(run.columns[span.sample], columns[:n]) & (run.slots[span.sample] >= 0)
        found[span.sample].append(embeds[span.sample][own.to(embeds.device)])
    return found
