"""A flagship at its true width on the pretended GPU: a prefill with one picture, and a step behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from fake import FakeDevice, sizes_on_device, without_placeholder_check
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from zoo.flagship import Flagship, Picture

TEXT = 60  # tokens beside the picture
TYPED = {"gemma3n": "token_type_ids", "gemma4": "mm_token_type_ids", "molmo2": "mm_token_type_ids"}
# whose features are put in instead of run, and why
SIZES = "its tower wants sizes where its pixels are, and reads them there"
PADDED = "its tower reads on the device which patches are padding"
WINDOWS = "its tower attends window by window: a quarter of a minute for one picture"
LONG = "its tower takes seconds for one picture"
PUT_IN = {
    "glm4v": SIZES,
    "glm46v": SIZES,
    "glm4v_moe": SIZES,
    "kimi_k25": SIZES,
    "nemotron_h_omni": SIZES,
    "lfm2_vl": SIZES,
    "minicpmv4_6": SIZES,
    "gemma4": PADDED,
    "molmo2": PADDED,
    "qwen2_5_omni_thinker": WINDOWS,
    "exaone4_5": WINDOWS,
    "muse_spark": LONG,
    "gemma3n": LONG,
    "ernie4_5_vl_moe": LONG,
    "deepseek_ocr2": LONG,
}
# transformers itself indexes with the mask of placeholders, which reads the device: it is told how many there are
INDEXES = ("gemma4", "molmo2")


class FlagshipRun:
    """A flagship's model and one picture on the pretended GPU."""

    def __init__(self, flagship: Flagship, picture: Picture, gpu: FakeDevice, model: nn.Module):
        self.flagship, self.picture, self.gpu, self.model = flagship, picture, gpu, model
        self.width = sum(picture.lengths) + TEXT

    def _text(self, length: int) -> dict[str, Any]:
        axes = (self.flagship.axes,) if self.flagship.axes > 1 else ()
        names = {"input_ids": (1, length), "position_ids": (*axes, 1, length)}
        if self.flagship.kind in TYPED:
            names[TYPED[self.flagship.kind]] = (1, length)
        return {k: self.gpu.put(torch.empty(shape, dtype=torch.long, device="meta")) for k, shape in names.items()}

    def prefill(self) -> Any:
        """The output of a forward with the picture."""
        given: dict[str, Any] = {}
        for name, value in self.picture.inputs.items():
            real = value.to(torch.bfloat16) if value.is_floating_point() else value
            given[name] = self.gpu.put(real) if value.is_meta else value
        with self.gpu:
            return self.model(**self._text(self.width), **given, use_cache=True)

    def step(self, cache: Any) -> Any:
        """The output of one decoding step."""
        with self.gpu:
            return self.model(**self._text(1), past_key_values=cache, use_cache=True)


@contextmanager
def pretended(flagship: Flagship) -> Iterator[FlagshipRun]:
    """`flagship` in bfloat16 on the pretended GPU, with the layers that it is run with."""
    flagship = flagship.as_run()
    assert flagship.picture is not None
    gpu, model, picture = FakeDevice(), flagship.on_meta().to(torch.bfloat16), flagship.picture()
    gpu.put_model(model)
    core: Any = model.base_model
    if flagship.kind in PUT_IN:
        width = model.config.get_text_config().hidden_size
        fed = [gpu.put(torch.empty(n, width, dtype=torch.bfloat16, device="meta")) for n in picture.lengths]
        out = BaseModelOutputWithPooling(pooler_output=fed[0] if flagship.kind == "gemma3n" else fed)
        core.get_image_features = lambda *_, **__: out
    if flagship.kind in INDEXES:
        gpu.marked = {type(core).__module__: sum(picture.lengths)}
    if flagship.kind == "hunyuan_vl":  # whose check counts by indexing, if it is told what to compare with
        whole = core.get_placeholder_mask
        core.get_placeholder_mask = lambda ids, inputs_embeds, image_features=None: whole(ids, inputs_embeds)
    with ExitStack() as stack:
        # which decides how transformers multiplies by experts
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)))
        stack.enter_context(without_placeholder_check(model, gpu))
        stack.enter_context(sizes_on_device(model, gpu))
        yield FlagshipRun(flagship, picture, gpu, model)
