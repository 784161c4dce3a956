"""Runs the upper decoder layers again on a part of the columns, from the states that one forward left behind.

What happens when tokens leave at layer K depends on the layers below only through the states that enter K. One forward
of the unpruned model keeps these for every K; each question "and with only these tokens from K on?" then costs the
upper layers on a few columns, many of them in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.eval.vlm.encode_once import to_device
from vtc.eval.vlm.prompts import Row
from vtc.models.language.deepstack import Deepstack
from vtc.models.stock.call_arguments import call_of

TOLERANCE = 2e-2  # in logits, relative to their spread; half precision needs it


class Replay:
    """One forward of the unpruned model on one row, ready to be continued from any decoder layer.

    Parameters
    ----------
    model : nn.Module
        The plain model.
    row : Row
        One question about one image.

    Attributes
    ----------
    logits : Tensor
        `[V]` float32, of the last prompt token.
    layouts : list of Layout
        Where the tokens of each image sit.
    columns : list of Tensor
        Columns of each image's tokens.
    text : Tensor
        Columns of everything else.
    first : int
        The lowest layer that can be continued from.

    Raises
    ------
    NotImplementedError
        If continuing from a layer with all columns does not give what the model gave.
    """

    def __init__(self, model: nn.Module, row: Row):
        from vtc.api import compressed
        from vtc.models.layout.model_parts import locate
        from vtc.models.stock.attention_windows import Windows

        self.parts = locate(model)
        windows = Windows(self.parts.lm, self.parts.layers)
        self._windows, self._attending = windows.now(), windows.attending()
        self._calls: list[tuple[Tensor, dict[str, Any]]] = []
        inputs = {name: to_device(value, model) for name, value in {**row.text, **row.vision}.items()}
        self.first = 1
        # wrapped without pruning: the same bits, and the report says where the image's tokens are
        with torch.no_grad(), compressed(model, "random(keep=1.0)"):
            hooks = [m.register_forward_pre_hook(self._note, with_kwargs=True) for m in self.parts.layers]
            hooks.append(self.parts.lm.register_forward_pre_hook(self._fed, with_kwargs=True, prepend=True))
            try:
                out = model(**inputs, use_cache=False, logits_to_keep=1)
            finally:
                for hook in hooks:
                    hook.remove()
            handle: Any = model.vtc
            report = handle.report
        self.logits = out.logits[0, -1].float()
        self.layouts, self.columns = report.layouts, [s.columns for s in report.spans]
        visual = torch.zeros(len(row.ids), dtype=torch.bool)
        visual[torch.cat(self.columns)] = True
        self.text = (~visual).nonzero()[:, 0]
        again = self.run(self.first, torch.arange(len(row.ids))[None])[0]
        if (again - self.logits).abs().max() > TOLERANCE * (self.logits.max() - self.logits.min()):
            raise NotImplementedError(
                f"the layers of {type(model).__name__} can't be run by themselves: continuing from layer {self.first} "
                "does not give what the whole model gives"
            )

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.layers)

    def _fed(self, lm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Features that are added between layers would be lacking in what goes on from a layer below."""
        fed = Deepstack.taken(call_of(lm, args, kwargs), torch.device("cpu"))
        self.first = max([1, *(fed.features if fed is not None else ())])

    def _note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        self._calls.append((hidden, kwargs))

    @torch.no_grad()
    def run(self, layer: int, columns: Tensor) -> Tensor:
        """Logits of the last prompt token when only some columns go on from `layer`.

        Parameters
        ----------
        layer : int
            `first` or higher.
        columns : Tensor
            `[R, M]` int64, ascending in each row, the last one of the prompt included. Positions stay.

        Returns
        -------
        Tensor
            `[R, V]` float32.
        """
        from vtc.models.selection.column_indices import gather_columns

        hidden = self._calls[layer][0]
        columns = columns.to(hidden.device)
        hidden = gather_columns(hidden, columns, -2)
        made: dict[Any, Any] = {}
        for i in range(layer, self.depth):
            call = call_of(self.parts.layers[i], (), self._calls[i][1])
            rotary = call.get("rotary")
            if id(rotary) not in made:
                made[id(rotary)] = rotary and tuple(gather_columns(x, columns, -2) for x in rotary)
            # no row is padded, so a recurrent layer needs no mask
            mask = self._mask(i, hidden, columns, call.get("mask"), made) if i in self._attending else None
            for meaning, value in (("rotary", made[id(rotary)]), ("positions", None), ("mask", mask), ("cache", None)):
                call.put(meaning, value)
            out = self.parts.layers[i](hidden, **call.kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        return self._head(self.parts.final_norm(hidden)[:, -1])

    def _mask(self, i: int, hidden: Tensor, columns: Tensor, given: Any, made: dict[Any, Any]) -> Any:
        from vtc.models.language.masks import gather_mask, keeps_pattern, slot_mask

        config, window = self.parts.lm.config, self._windows[i]
        own = keeps_pattern(given, self._calls[i][0].shape[1])
        key = ("mask", window, id(given) if own else None)
        if key not in made:
            if own:
                made[key] = gather_mask(given, columns, config, columns)
            else:
                made[key] = slot_mask(config, columns, columns, hidden.dtype, False, window)
        return made[key]

    def _head(self, hidden: Tensor) -> Tensor:
        logits = self.parts.model.get_output_embeddings()(hidden).float()
        cap = getattr(self.parts.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def keeping(self, layer: int, kept: Sequence[Tensor], batch_size: int = 64) -> Tensor:
        """`[len(kept), V]`: logits when of the image only the columns ``kept[i]`` go on from `layer`; none if empty."""
        out: list[Tensor | None] = [None] * len(kept)
        sizes = sorted({len(k) for k in kept})
        for size in sizes:  # equally long rows need no padding
            rows = [i for i, k in enumerate(kept) if len(k) == size]
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                columns = torch.stack([torch.cat([self.text, kept[i]]).sort().values for i in part])
                for i, line in zip(part, self.run(layer, columns), strict=True):
                    out[i] = line
        return torch.stack([line for line in out if line is not None])
