"""Prompts pruned at the input into a static cache: the text model runs as on a shorter prompt, with its own masks.

All layers hold the same tokens then, so nothing is needed of any layer: positions are given, and of a mask that was
made for the whole prompt what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from vtc.models.cache.static_layers import Phase, is_static, shorten, widened
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.forward_state import Run
from vtc.models.language.masks import gather_mask, valid_columns
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_windows import ATTENTION
from vtc.models.stock.call_arguments import Call
from vtc.models.stock.transformers_api import STATIC_COUNTS
from vtc.pruners.base import Stop

KINDS = ("sdpa", "eager")


class StaticPrompts:
    """Static caches of one wrapped model.

    Parameters
    ----------
    side : DecoderSide
        Knows the layers of the text model.
    stops : sequence of Stop
        Of the pipeline.
    positions : str
        ``"keep"`` or ``"compact"``.
    """

    def __init__(self, side: DecoderSide, stops: Sequence[Stop], positions: str):
        self.lm, self.windows = side.parts.lm, side.windows
        self.own = all(source == i for i, source in enumerate(side.sources))
        self.why = ""
        if any(stop.stage == "decoder" for stop in stops):
            self.why = "a method prunes before a decoder layer, and its layers hold as many tokens each"
        elif side.calibrating:
            self.why = f"{side.calibrating} adds to the attention of each layer, and its layers are given nothing"
        elif positions == "compact":
            self.why = "positions='compact' renumbers tokens"
        elif not self.own or set(self.windows.kinds) != {ATTENTION}:
            self.why = "layers share keys, or keep a state"
        elif not STATIC_COUNTS:
            self.why = "this version of transformers counts a static cache's tokens outside of it"

    def refuse(self, why: str) -> NoReturn:
        """Say what a static cache can't do."""
        raise NotImplementedError(
            f"a static cache can't be pruned here: {why}. Leave out cache_implementation / past_key_values (the "
            "default is a DynamicCache), or call vtc.restore(model) first."
        )

    def takes(self, cache: Any, fed: bool) -> bool:
        """Whether a prompt of pictures goes into this cache as a static one.

        Raises
        ------
        NotImplementedError
            If it is one, and can't be pruned.
        """
        if not is_static(cache):
            return False
        kind = attention_kind(self.lm.config)
        if self.why:
            self.refuse(self.why)
        if fed and kind not in KINDS:
            self.refuse(f"masks of {kind} are made otherwise (sdpa and eager are known)")
        return True

    def step(self) -> ShortStep:
        """For a forward without pictures on a static cache in which tokens are missing."""
        return ShortStep(self.refuse)

    def begin(self, run: Run, call: Call, before: Tensor | None) -> Phase:
        """The text model is about to run on what is left of a prompt.

        Parameters
        ----------
        run : Run
            A pruned forward.
        call : Call
            Of the text model; gets its mask.
        before : Tensor or None
            `[B, past]` bool: which tokens are no padding in a cache that nothing was pruned from.
        """
        cache, given = run.cache, call.get("mask")
        first, left = cache.layers[0], run.columns.shape[1]
        columns, old = first.max_cache_len, getattr(first, "real", None)
        held = run.past - getattr(first, "dropped", 0)
        window = min((w for w in self.windows.now() if w is not None), default=None)
        if window is not None and columns + run.past - held + run.full - left > window:
            self.refuse(f"a sliding window of {window} tokens may be exceeded")
        if run.unseen is not None:
            self.refuse("the prompt ends in a picture whose last token goes")
        if held + left > columns:
            self.refuse(f"it has {columns} places, and {held} tokens are in it where {left} come")
        real = None
        if run.padded or old is not None or before is not None:
            real = widened(old, held, run.slots >= 0, columns)
            if before is not None:
                real[:, :held] = before
        masks = given if isinstance(given, dict) else {"": given}
        whole = {k: m for k, m in masks.items() if not (m is None or (isinstance(m, Tensor) and m.dim() == 2))}
        if whole and (old is not None or not all(isinstance(m, Tensor) for m in whole.values())):
            self.refuse("the mask of a second prompt with pictures is made over all tokens")
        if any(mask.shape[-1] < held + run.full for mask in whole.values()):
            self.refuse(f"masks of this model are made over its {columns} places, fewer than the prompt has tokens")
        if whole or isinstance(given, dict):
            cut = {k: self._cut(m, run, held) if k in whole else m for k, m in masks.items()}
            call.put("mask", cut if isinstance(given, dict) else cut[""])
        else:
            call.put("mask", real)
        return shorten(cache, run.full - left, real)

    def _cut(self, mask: Tensor, run: Run, held: int) -> Tensor:
        """What is left of a mask `[B, 1, L, M]` over a static cache; what is not filled yet is hidden."""
        past = torch.arange(held, device=run.columns.device).expand(len(run.columns), -1)
        new = torch.where(run.key_slots < 0, -1, run.columns + held)
        keys = torch.cat([past, new], 1).to(mask.device)
        found = gather_mask(mask, run.columns.to(mask.device), self.lm.config, keys)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return torch.nn.functional.pad(found, (0, mask.shape[-1] - keys.shape[1]), value=hidden)


class ShortStep:
    """A forward without pictures on a static cache in which tokens are missing."""

    def __init__(self, refuse: Any):
        self.refuse = refuse
        self.phase: Phase | None = None

    def begin(self, cache: Any, call: Call, asked: Any) -> None:
        """Prepare the call of the text model; `asked` is the mask that the caller gave."""
        first, embeds = cache.layers[0], call.get("embeds")
        if not (asked is None or (isinstance(asked, Tensor) and asked.dim() == 2)):
            self.refuse("a mask of the caller's own does not know which tokens are missing")
        rows, length = embeds.shape[:2]
        if call.get("positions") is None:
            call.put("positions", (torch.arange(length, device=embeds.device) + first.get_seq_length())[None])
        if length > 1:
            valid = valid_columns(asked, rows, length, embeds.device)
            if valid is not None and not bool(valid.all()):
                start = int(first.get_seq_length()) - first.dropped
                first.real = widened(first.real, start, valid, first.max_cache_len)
        call.put("mask", first.real)
        self.phase = first.phase
        self.phase.open = True

    def end(self) -> None:
        """It is over, or has failed."""
        if self.phase is not None:
            self.phase.open = False
