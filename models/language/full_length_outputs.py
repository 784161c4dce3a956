"""Gives what a text model returns its full length again, so that indices mean what they mean in the stock model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.selection.column_indices import gather_columns, places
from vtc.models.stock.transformers_api import change_layers, hidden_of, versions, with_hidden

from .forward_state import Run


def restore_output(run: Run, output: Any) -> Any:
    """The output of a forward with all its columns: zeros where tokens are gone.

    Parameters
    ----------
    run : Run
        The forward, which is over.
    output : ModelOutput or tuple
        Of the text model. The last hidden state `[B, L', D]` becomes `[B, L, D]`, and so do those of the layers, where
        they were asked for; attentions `[B, H, L', K']` become `[B, H, L, K]`, every key at its place in the sequence.

    Notes
    -----
    In the last hidden state a picture's last token, when it is gone, answers with what is left before it: a label asks
    it for the token behind the picture, and so does ``generate`` where the prompt ends there.
    """
    short = hidden_of(output)
    last = _pick(short, _answering(run)) if run.pruned else short

    def states(i: int, x: Tensor) -> Tensor:
        if x is short:
            return last
        if run.lent:
            return _between(run, i, x)
        # what a layer gives has the columns that entered it
        return x if x.shape[-2] == run.full else _pick(x, places(run.trail[max(i - 1, 0)][0], run.full))

    def attention(i: int, x: Tensor) -> Tensor:
        columns, keys = run.trail[run.attending[i]]  # recurrent layers give none
        if x.shape[2] != run.full:
            x = _along(x, places(columns, run.full), 2)
        return x if keys is None else _along(x, places(keys, run.past + run.full), 3)

    output = change_layers(output, states, attention)
    return with_hidden(output, last) if run.pruned else output


def _between(run: Run, i: int, x: Tensor) -> Tensor:
    """What enters layer `i` where tokens go round layers: between these all that are left are there."""
    if i == 0 and run.lent.get(0) is not None:  # collected as the layer was given it
        x = run.lent[0]  # type: ignore[assignment]
    if x.shape[-2] != run.columns.shape[1]:
        raise NotImplementedError(
            "this version of transformers collects what a layer gives before the tokens that go round it are back: "
            f"leave output_hidden_states out. {versions()}"
        )
    return _pick(x, run.current()[:, : run.full]) if run.pruned else x


def _answering(run: Run) -> Tensor:
    """`[B, full]`: the present column that answers for each original one; -1 for none."""
    place = run.current()[:, : run.full]
    visual = run.batch.visual(*place.shape)
    ends = visual & ~torch.nn.functional.pad(visual[:, 1:], (0, 1))
    return torch.where(ends & (place < 0), place.cummax(1).values, place)


def _pick(x: Tensor, place: Tensor) -> Tensor:
    """`[..., B, n, D]`: rows `place` `[B, n]` of `x` `[..., B, L, D]`, zeros for -1."""
    return gather_columns(x, place, -2).masked_fill((place < 0).to(x.device)[..., None], 0)


def _along(x: Tensor, place: Tensor, dim: int) -> Tensor:
    """The same along the dimension 2 or 3 of attentions `[B, H, L, K]`."""
    index = place.to(x.device)[:, None, :, None] if dim == 2 else place.to(x.device)[:, None, None]
    shape = list(x.shape)
    shape[dim] = place.shape[1]
    return x.gather(dim, index.clamp(min=0).expand(shape)).masked_fill(index < 0, 0)
