"""vLLM's CPU runner never turns its path for pruned positions on, though the switch for it is given; this does it.

``GPUModelRunner.load_model`` sets ``is_multimodal_pruning_enabled`` from model and configuration at its end;
``CPUModelRunner`` has a ``load_model`` of its own that leaves it False (0.32, 0.33), and any pruned prompt then stops
with positions of another length. Only engines that run a model of ours are touched.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

MODULE, MARK = "vllm.v1.worker.cpu_model_runner", "_vtc_completed"


def complete_cpu_runner() -> None:
    """Let a CPU runner set what the GPU's sets; does nothing in a process without one, or a second time."""
    module = sys.modules.get(MODULE)
    runner = getattr(module, "CPUModelRunner", None)
    if runner is None or MARK in runner.__dict__:
        return
    stock = runner.load_model

    @functools.wraps(stock)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        from .rotary import RotaryModel

        found = stock(self, *args, **kwargs)
        if isinstance(self.get_model(), RotaryModel):
            config = self.model_config.multimodal_config
            self.is_multimodal_pruning_enabled = config is not None and config.is_multimodal_pruning_enabled()
        return found

    runner.load_model = load_model
    setattr(runner, MARK, True)
