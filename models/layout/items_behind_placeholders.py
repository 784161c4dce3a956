"""Which items fill the placeholders: read from the features as fed, and from the record that made them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vtc.models.stock.call_arguments import NAMES
from vtc.models.stock.transformers_api import features_in
from vtc.pruners.layout import Layout

from .layouts_by_family import VisionCall
from .model_parts import Parts
from .vision_call_record import VisionRecord


@dataclass
class Fed:
    """What was fed to the model for one modality: its record, and the lengths of the items as fed.

    Beam search repeats each sample's group of items, so `lengths` may hold every item of the record several times.
    ``first[i]`` is the first fed item that is the very same tensor as item `i`; None: that can't be told.
    """

    record: VisionRecord
    lengths: list[int]
    first: list[int] | None = None

    @property
    def repeats(self) -> int:
        """How often each recorded item was fed."""
        return max(1, len(self.lengths) // max(1, len(self.record.lengths)))

    def cut_at_rows(self, counts: Sequence[int]) -> Fed:
        """One item that fills the placeholders of several rows, `counts` in each, as an item a row; else these.

        Fuyu is given the patches of all pictures of a batch as one, without a word on where a picture ends.
        """
        own, record = [n for n in counts if n], self.record
        whole = len(own) < 2 or self.lengths != [sum(own)] or record.lengths != self.lengths
        if whole or record.signals or record.steps:
            return self
        return Fed(replace(record, lengths=own, layouts=lambda: [Layout.line(n) for n in own]), own)


def joined_crop(core: Any) -> int | None:
    """Tokens of a crop by the configuration, where features come joined by sample; None: they do not.

    So they do in Idefics2 and 3, SmolVLM and Granite-Docling.
    """
    latents = getattr(getattr(core.config, "perceiver_config", None), "resampler_n_latents", None)
    return getattr(core, "image_seq_len", None) or latents


def crop_length(core: Any, output: Any, total: int) -> int | None:
    """Tokens of each crop, where the `total` of a vision call come joined by sample; None: they do not.

    Granite-Docling makes four times as many of a crop when it is asked to: the tower's rows are the crops.
    """
    unit, rows = joined_crop(core), getattr(output, "last_hidden_state", None)
    if unit and isinstance(rows, Tensor) and rows.dim() == 3 and len(rows) and total % len(rows) == 0:
        return total // len(rows)
    return unit


def item_lengths(features: Any) -> list[int]:
    """Tokens of each item of such features: a list of `[n, D]`, or one `[N, n, D]` or `[n, D]` tensor."""
    if isinstance(features, Tensor) and features.dim() == 2:
        return [features.shape[0]]
    return [math.prod(f.shape[:-1]) for f in features]  # nothing of torch's, which would be traced as a graph


def _first_of_each(features: Any) -> list[int] | None:
    """The first entry that is the very same tensor as each one; None where entries are no tensors of their own."""
    if not isinstance(features, (list, tuple)):
        return None
    seen: dict[int, int] = {}
    return [seen.setdefault(id(entry), i) for i, entry in enumerate(features)]


def fed_of(parts: Parts, modality: str, output: Any, encoded: VisionRecord | None = None) -> Fed:
    """What ``mm_encoder_outputs[modality]`` feeds.

    Raises
    ------
    ValueError
        If the features no longer match the record that came with them.
    """
    features = features_in(output)
    entries, first = item_lengths(features), _first_of_each(features)
    # accelerate's hooks copy the output, and the copy has no attribute of ours
    record: VisionRecord | None = getattr(output, "_vtc", None) or encoded
    if record is None:  # computed without vtc
        unit = crop_length(parts.core, output, sum(entries))
        lengths = entries if not unit else [unit] * (sum(entries) // unit)
        call = VisionCall(parts.core, modality, {}, lengths)
        family = parts.family
        return Fed(
            VisionRecord(modality, lengths, lambda: family.layouts_of(call), may_have_newlines=family.newlines), lengths
        )
    if entries == record.lengths or sum(entries) == sum(record.lengths):
        return Fed(record, record.lengths)
    total, known = sum(entries), sum(record.lengths)
    if known and total % known == 0:
        if len(set(record.lengths)) == 1:
            lengths = [record.lengths[0]] * (total // record.lengths[0])
            return Fed(record, lengths, first if entries == lengths else None)  # else joined by sample
        if len(entries) == len(record.lengths) * (total // known):
            return Fed(record, entries, first)
    raise ValueError(
        f"mm_encoder_outputs[{modality!r}] holds {total} tokens in {len(entries)} items, but was computed as {known} "
        f"tokens in {len(record.lengths)}: compute the features of just these items with get_image_features"
    )


def fewer(fed: Fed, mask: Tensor) -> Fed:
    """What is fed of videos of which the model is told to leave tokens out (VideoLLaMA 3): the places have gaps.

    Parameters
    ----------
    fed : Fed
        All tokens of the videos.
    mask : Tensor
        `[n]` bool: which of them are fed.

    Raises
    ------
    ValueError
        If nothing is left of a video.
    """
    mask = mask.cpu()
    if bool(mask.all()):  # always so where beams repeated the videos: of others transformers can't repeat any
        return fed
    (name,) = NAMES["video tokens"]
    lengths = [int(part.sum()) for part in mask.split(fed.lengths)]
    if not all(lengths):
        raise ValueError(
            f"{name} leaves no token of video {lengths.index(0)}: leave the video out, or one token of it in"
        )
    record = replace(fed.record, lengths=lengths, layouts=lambda: [Layout.line(n) for n in lengths])
    return Fed(record, lengths)
