"""Pruned image embeddings for an engine that takes embeddings in place of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vtc.models.adapter import Adapter
from vtc.models.kept_embeddings import kept_embeddings

from .vtc_attribute import handle_of


def embed(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[Tensor]]:
    """Embeddings of the visual tokens that a wrapped model keeps, for an engine that takes them in place of pictures.

    The tower, the projector and the methods run; the language model does not. An engine fed with these and the same
    text gives the answers of `model`: it numbers what it is fed without gaps, hence ``positions="compact"``.

    Parameters
    ----------
    model : nn.Module
        Wrapped with methods of the input or vision stage and ``positions="compact"``.
    inputs : mapping
        What the processor made of the prompt, its pictures and videos.

    Returns
    -------
    list of list of Tensor
        For each row of the batch, for each of its pictures (then videos) in order, `[K, D]` in the model's dtype and on
        its device: `K` placeholders belong there in the engine's prompt. A picture that the prompt cuts into crops with
        placeholders of their own (Idefics3) is one for each crop.

    Raises
    ------
    ValueError
        If `model` is not wrapped, or keeps original positions, or if there is no picture in `inputs`.
    NotImplementedError
        For methods of the decoder stage, for models whose pictures are more than their embeddings (several axes of
        positions, features fed to later layers, per-layer inputs, token types), for pictures with text inside them
        (markers of rows), and for prompts longer than a sliding window: the engine counts it in what it is fed.

    Examples
    --------
    >>> model = vtc.load("bundled", "divprune", keep=64, positions="compact")  # doctest: +SKIP
    >>> pictures = vtc.embed(model, processor(text=text, images=[image], return_tensors="pt"))[0]  # doctest: +SKIP
    >>> llm.generate({"prompt": text, "multi_modal_data": {"image": pictures[0][None]}})  # doctest: +SKIP
    """
    handle = handle_of(model) if isinstance(model, nn.Module) else None
    if handle is None:
        raise ValueError("wrap the model first: vtc.compress(model, 'divprune', keep=64, positions='compact')")
    if not isinstance(handle.adapter, Adapter):
        raise NotImplementedError(f"{type(model).__name__} has no language model that could be fed embeddings")
    return kept_embeddings(handle.adapter, inputs)
