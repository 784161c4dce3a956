"""One prompt, and the readings that can be taken of it: seconds by part, and the peak of memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtc.eval.vlm.encode_once import core_of, encode, encoder_inputs, reuses_encoder, to_device
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.prompts import Row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.models.stock.call_arguments import cache_of, given

from .clocks import Clock, wall_clock

DECODED = 4  # tokens behind each timed prefill


class TimedPrompt:
    """A prompt on the model's device.

    Parameters
    ----------
    model : nn.Module
        Unwrapped.
    row : Row
        The prompt; its ``vision`` holds the pixels of all samples.
    batch : int
        Samples of the same text.
    clock : Clock, optional
        Time that passes if not given.
    """

    def __init__(self, model: nn.Module, row: Row, batch: int = 1, clock: Clock | None = None):
        self.model, self.row, self.batch = model, row, batch
        self.device = next(model.parameters()).device
        self.clock = clock or wall_clock(self.device)
        self.text = {name: to_device(value.repeat(batch, 1), model) for name, value in row.text.items()}
        self.vision = {name: to_device(value, model) for name, value in row.vision.items()}

    def read(self, cell: Cell) -> dict[str, float]:
        """One turn of a cell: seconds by part."""
        found: dict[str, float] = {}
        given = None
        with pruned(self.model, cell) as model:
            handle = getattr(model, "vtc", None)
            if reuses_encoder(self.model):
                found["vision"], features = self.clock.measure(lambda: encode(model, self.row))
                given = encoder_inputs([self.row], [features], self.model)
                found["lm_prefill"], _ = self.clock.measure(lambda: self.forward(model, given))
            found["prefill"], out = self.clock.measure(lambda: self.forward(model))
            found["decode"] = self.clock.measure(lambda: self.decode(model, out))[0] / DECODED
            if handle is not None:
                found["selection"] = self.choosing(model, None if cell.vision_stage else given)
        return found

    def selection(self, cell: Cell) -> float:
        """Seconds of choosing tokens; 0 for the unpruned model."""
        if cell == UNPRUNED:
            return 0.0
        with pruned(self.model, cell) as model:
            return self.choosing(model)

    def whole(self) -> tuple[float, float]:
        """Seconds of the unpruned model's tower with its projector, and of its prefill."""
        tower, _ = self.clock.measure(lambda: encode(self.model, self.row))
        return tower, self.clock.measure(lambda: self.forward(self.model))[0]

    def choosing(self, model: Any, vision: dict[str, Any] | None = None) -> float:
        """Of a wrapped model, in a forward of its own (see ``forward``), as it synchronises inside."""
        model.vtc.timing = True
        self.forward(model, vision)
        model.vtc.timing = False
        return model.vtc.report.selection_seconds or 0.0

    def forward(self, model: Any, vision: dict[str, Any] | None = None) -> Any:
        """A prefill; of `vision` instead of the pixels where that is given."""
        return model(**self.text, **(self.vision if vision is None else vision), use_cache=True, logits_to_keep=1)

    def decode(self, model: Any, out: Any) -> None:
        """``DECODED`` tokens behind a prefill that gave `out`."""
        for _ in range(DECODED):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, **given(core_of(model), cache=cache_of(out)), use_cache=True)

    def memory(self, cell: Cell) -> tuple[int, str]:
        """Peak bytes of a prefill, and of what."""
        with pruned(self.model, cell) as model:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                self.forward(model)
                return torch.cuda.max_memory_allocated(self.device), "CUDA allocations"
            whole = reset_peak()
            self.forward(model)
            return peak_resident(), "resident process" + ("" if whole else " since its start")


def reset_peak(status: Path = Path("/proc/self/clear_refs")) -> bool:
    """Let the process's peak of resident memory begin anew; False where the system can't.

    What was freed goes back to the system first, where its C library can do that, or it would count as resident.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        status.write_text("5")
    except OSError:
        return False
    return True


def peak_resident() -> int:
    """The process's peak of resident memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
