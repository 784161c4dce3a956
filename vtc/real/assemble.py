"""The stock LLaVA around both sets of weights, with its processor, and the adapter that taught them to speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from .tower import PATCH, read_tower
from .wheels import LANGUAGE, SIZE, TOWER, file_of

FEATURE_LAYERS = (3, 6, 11)
"""Early layers know colours, later ones shapes and letters; the model card has the figures."""
IMAGE_TOKEN = "<image>"
DINOV2_MEAN, DINOV2_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROJECTOR, LOW_RANK = "projector.", "low_rank."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own, without the system prompt that it adds to a chat that has none."""


def build_model() -> LlavaForConditionalGeneration:
    """The model in float32: tower and language model as they lie in the packages, the projector untrained.

    The vocabulary is SmolLM2's with one more token, ``<image>``. Its word embedding is the mean of all others, so that
    its logit is the mean of all logits and it is never the most likely token.

    Raises
    ------
    FileNotFoundError
        If a package is missing.
    """
    from transformers import AutoModelForCausalLM

    tower = read_tower(file_of(TOWER))
    file = file_of(LANGUAGE)
    language: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    words = language.get_input_embeddings().weight
    text: dict[str, Any] = {**language.config.to_dict(), "vocab_size": len(words) + 1, "tie_word_embeddings": True}
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=text,
        image_token_index=len(words),
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=list(FEATURE_LAYERS),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config).eval()
    state = language.model.state_dict()
    state["embed_tokens.weight"] = torch.cat([words, words.mean(dim=0, keepdim=True)]).detach()
    model.model.language_model.load_state_dict(state)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = language.config.eos_token_id
    model.generation_config.bos_token_id = language.config.bos_token_id
    model.generation_config.pad_token_id = language.config.eos_token_id
    return model


def build_processor(size: int = SIZE) -> LlavaProcessor:
    """The stock processor: DINOv2's pixels, SmolLM2's words, and ``<image>``.

    Parameters
    ----------
    size : int
        Side of the square that pictures are scaled and cropped to, a multiple of 14; a token is 14 pixels.
    """
    from transformers import AutoTokenizer, BitImageProcessor

    file = file_of(LANGUAGE)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = "left"
    pixels = BitImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(DINOV2_MEAN),
        image_std=list(DINOV2_STD),
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


@torch.no_grad()
def apply_adapter(model: nn.Module, file: Path) -> None:
    """Load the trained projector, and add what was learnt of low rank to the language model's matrices.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        From :func:`build_model`; its weights are float32.
    file : Path
        Safetensors: ``projector.*`` as the projector's own state, and for each matrix `W` ``[out, in]`` of the language
        model's layers ``low_rank.<name>.down`` ``[r, in]`` and ``.up`` ``[out, r]`` (LoRA, arXiv 2106.09685, eq. 3):
        `W + up @ down`. Any scale is in `up` already.

    Raises
    ------
    KeyError
        If it names a matrix that the model does not have.
    """
    core: Any = model.get_submodule("model")
    projector: dict[str, Tensor] = {}
    with safe_open(file, "pt") as stored:
        names = list(stored.keys())
        for name in names:
            if name.startswith(PROJECTOR):
                projector[name.removeprefix(PROJECTOR)] = stored.get_tensor(name).float()
        for name in names:
            if name.startswith(LOW_RANK) and name.endswith(".up"):
                down = stored.get_tensor(name.removesuffix(".up") + ".down").float()
                weight = core.language_model.get_parameter(name.removeprefix(LOW_RANK).removesuffix(".up") + ".weight")
                weight.add_(stored.get_tensor(name).float() @ down)
    core.multi_modal_projector.load_state_dict(projector)
