"""The hooks of loans: before a layer its tokens go, within it the MLP branch is gated, behind it they are back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.forward_state import Run
from vtc.models.layout.model_parts import Parts
from vtc.models.selection.stopwatch import now
from vtc.models.stock.attention_windows import ATTENTION
from vtc.models.stock.hooks_outside_checkpoint import After
from vtc.models.stock.per_thread import ThreadState
from vtc.pruners.base import Loan, Pruner, Stop

from .lending import give_back, lend
from .mlp_branch import branch_end


class _Replay(ThreadState):
    """The gates of a layer that runs under a checkpoint, now or once more in the backward pass."""

    gate: Tensor | None = None


class Loans:
    """Hook bodies; ``Adapter`` says where they go.

    Parameters
    ----------
    parts : Parts
        The model's parts.
    stops : list of (Pruner, Stop)
        In forward order; the loans count.
    side : DecoderSide
        The hooks of the layers, which ask here what enters.

    Attributes
    ----------
    at : dict
        By layer the method and its stop.
    ends : list of nn.Module
        The last module of each such layer's MLP branch.

    Raises
    ------
    NotImplementedError
        For layers that can't be lent from.
    """

    def __init__(self, parts: Parts, stops: list[tuple[Pruner, Stop]], side: DecoderSide):
        self.at = {stop.layer or 0: (pruner, stop) for pruner, stop in stops if isinstance(stop, Loan)}
        self.parts, self.steps, self.local, self.replay = parts, side.steps, side.local, _Replay()
        self.ends: list[nn.Module] = []
        if not self.at:
            return
        name, lm = next(iter(self.at.values()))[0].spoken_name, type(parts.lm).__name__
        if side.windows.streams > 1:
            raise NotImplementedError(
                f"{name} gates what a layer does to a token's hidden state, and {lm} has {side.windows.streams} of "
                "them for each token between its layers"
            )
        if any(source != i for i, source in enumerate(side.sources)):
            raise NotImplementedError(
                f"{name} lets each decoder layer hold other tokens, and some layers of {lm} read the keys of others"
            )
        for i in self.at:
            if side.windows.kinds[i] != ATTENTION:
                raise NotImplementedError(
                    f"{name} lets tokens go round decoder layer {i}, and that of {lm} is no attention layer: a state "
                    "can't be given what it has not seen"
                )
            self.ends.append(branch_end(parts.layers[i], side.calls.mixers[i], parts.lm.config.hidden_size, name))
        side.lend = self._lend

    def _lend(self, run: Run, i: int, hidden: Tensor) -> Tensor:
        pruner, stop = self.at[i]
        report, timing = self.local.report, self.steps.timing
        assert isinstance(stop, Loan)
        assert report is not None
        started = now(hidden, timing) if timing else 0.0
        hidden, ids, count = lend(run, pruner, stop, hidden, self.parts)
        if timing and report.selection_seconds is not None:
            report.selection_seconds += now(hidden, timing) - started
        report.add_loan(i, ids, count)
        return hidden

    def after(self, i: int, behind: After | None) -> After | None:
        """The hook behind layer `i`, in front of the hook `behind`, if any."""
        if i not in self.at:
            return behind

        def back(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            run = self.local.run
            if run is None or run.away is None:
                return None if behind is None else behind(layer, args, output)
            whole = give_back(run, output[0] if isinstance(output, tuple) else output)
            output = (whole, *output[1:]) if isinstance(output, tuple) else whole
            changed = None if behind is None else behind(layer, args, output)
            return output if changed is None else changed

        return back

    def scale(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The hook of an MLP branch: what it adds, times the gates."""
        gate, run = self.replay.gate, self.local.run
        if gate is None and run is not None and run.away is not None:
            gate = run.away.scale
        if gate is None:
            return None
        added = output[0] if isinstance(output, tuple) else output
        added = (added * gate.to(added.device)).to(added.dtype)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    def carry(self, call: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
        """A layer's call under a checkpoint, with its gates as a further argument; see ``LayerHooks``."""
        run = self.local.run
        if run is None or run.away is None:
            return call, ()
        return functools.partial(self._gated, call), (run.away.scale,)

    def _gated(self, call: Callable[..., Any], *args: Any) -> Any:
        *args, gate = args  # type: ignore[assignment]
        before, self.replay.gate = self.replay.gate, gate
        try:
            return call(*args)
        finally:
            self.replay.gate = before

    def refuse_compiled(self, *_: Any) -> NoReturn:
        """Stands for the text model's hook where ``torch.compile`` traces."""
        name = next(iter(self.at.values()))[0].spoken_name
        raise NotImplementedError(
            f"{name} lets every layer see another number of tokens, which torch.compile would trace as so many graphs: "
            "call the model without it"
        )
