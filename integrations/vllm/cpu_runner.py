"""Two things that vLLM does when it starts on a GPU and leaves out on a CPU; only for models of ours.

``GPUModelRunner.load_model`` sets ``is_multimodal_pruning_enabled`` from model and configuration at its end;
``CPUModelRunner`` has a ``load_model`` of its own that leaves it False (0.32, 0.33), and any prompt with pruned
positions then stops with positions of another length. And a GPU's memory is measured by a run on dummy pictures, in
which methods that can't run on this model say so; a CPU's is not.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

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
        from .worker import PrunedModel

        found, model = stock(self, *args, **kwargs), self.get_model()
        if isinstance(model, RotaryModel):
            self.is_multimodal_pruning_enabled = self.model_config.multimodal_config.is_multimodal_pruning_enabled()
        if isinstance(model, PrunedModel):
            with torch.inference_mode():  # as the engine calls it
                model.embed_multimodal(**_dummy_picture(self))
        return found

    runner.load_model = load_model
    setattr(runner, MARK, True)


def _dummy_picture(runner: Any) -> dict[str, Any]:
    """What a model is given to encode one picture that means nothing."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    processor = MULTIMODAL_REGISTRY.create_processor(runner.model_config)
    item = processor.get_dummy_mm_inputs({"image": 1})["mm_kwargs"]["image"][0]
    ((_, _, given),) = group_and_batch_mm_kwargs([("image", item)], device=runner.device)
    return given
