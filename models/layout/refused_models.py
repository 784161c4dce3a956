"""Why a model has no composite part that vtc could hook, in words: no column of it is a visual token."""

from __future__ import annotations

from typing import Any

from torch import nn

from vtc.models.stock.call_arguments import named_arguments, need, takes

from .find_parts import makes_features, owns_layers, text_config

ELSEWHERE = (
    "Look at token reduction inside the vision encoder for such models (ToMe and its kin, which vtc has for bare "
    "ViTs), or use a model that feeds visual tokens to a decoder, e.g. LLaVA, Qwen-VL or InternVL."
)
BUILT = "get_image_features, then a text model called with inputs_embeds"


def no_composite(model: Any) -> NotImplementedError:
    """The refusal of a model in which no composite part was found, and where to look instead."""
    name, kind = type(model).__name__, getattr(getattr(model, "config", None), "model_type", None)
    return NotImplementedError(f"{name} ({kind}) can't be pruned by vtc: {_why(model)}")


def _why(model: Any) -> str:
    if encodes_and_decodes(model):
        return (
            "it is an encoder-decoder: its visual tokens stay in the encoder, and the decoder reads them by "
            f"cross-attention. {ELSEWHERE}"
        )
    if any(crosses(m) for m in model.modules()):
        return (
            "its decoder reads the picture by cross-attention, so no column of it is a visual token that could go. "
            f"{ELSEWHERE}"
        )
    for module in model.modules():
        if makes_features(module):
            _need_arguments(module)
        if makes_features(module) and takes(module, "embeds"):
            text = _text_model(module)
            if text is not None and not owns_layers(text):
                return f"its text model {type(text).__name__} owns no list of decoder layers that take hidden_states"
            return (
                f"{type(module).__name__} is composite and text model in one, so there is no border at which visual "
                f"tokens could leave. {ELSEWHERE}"
            )
    return (
        f"it has no module that is built like a VLM's ({BUILT}). If one of its modules is, name them: VTCConfig(..., "
        "parts={'core': 'model', 'lm': 'model.language_model', 'layers': 'model.language_model.layers', 'tower': "
        "'model.vision_tower'})."
    )


def _need_arguments(core: Any) -> None:
    """Refuse a model that is built like a VLM but for the name of an argument."""
    text = _text_model(core)
    if text is not None:
        need(core, "ids", "embeds", "mask")
        need(text, "embeds", "mask", "positions", "cache")


def _text_model(core: Any) -> Any:
    """What is configured as the text model of a composite one, whatever it is like; None: nothing inside it is."""
    config = text_config(core)
    inside = (m for m in core.modules() if m is not core and config is not None)
    own = config is not getattr(core, "config", None)  # else its layers, too, are configured by the same
    return next((m for m in inside if getattr(m, "config", None) is config and (own or owns_layers(m))), None)


def encodes_and_decodes(model: Any) -> bool:
    """Whether a model is an encoder-decoder, whose text model may look like that of a composite one."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def crosses(module: nn.Module) -> bool:
    """Whether a module reads states of another model by cross-attention."""
    return any("cross_attention" in n or n == "encoder_hidden_states" for n in named_arguments(module))


def refuse_nested(model: Any, core: Any) -> None:
    """Refuse a composite model inside yet another one, which may call it as it likes.

    Raises
    ------
    NotImplementedError
        Naming both, and what to wrap instead.
    """
    for path, outer in model.named_modules():
        inside = outer is not model and outer is not core and not isinstance(outer, nn.ModuleList | nn.ModuleDict)
        if inside and any(m is core for m in outer.modules()):
            raise NotImplementedError(
                f"the composite model {type(core).__name__} is inside {type(outer).__name__}, which "
                f"{type(model).__name__} uses for more than answers about pictures: wrap the inner model that "
                f"generates text, e.g. vtc.compress(model.{path}, ...), if it can be used by itself"
            )
