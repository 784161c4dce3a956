"""The engine's model in the shape in which vtc's host side asks a transformers model for its parts."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from vtc.models.layout.families import family_of
from vtc.models.layout.model_parts import Parts

# what rearranges patches is asked of transformers' own class, so that it is the same code on both sides
REARRANGING = ("pack_image_features", "pixel_shuffle")


class Core:
    """The engine's model `model` as a composite model of transformers with configuration `config`."""

    def __init__(self, model: nn.Module, config: Any):
        self.model, self.config = model, config

    def __getattr__(self, name: str) -> Any:
        if name in REARRANGING:
            from transformers import AutoModel

            return partial_method(getattr(AutoModel._model_mapping[type(self.config)], name), self)
        return getattr(self.model, name)


class partial_method(partial[Any]):
    """A function with its ``self`` filled in, whose own names can still be looked up as a bound method's can."""

    @property
    def __code__(self) -> Any:
        return self.func.__code__


class TextModel:
    """The engine's language model as far as methods of the input stage ask for it."""

    def __init__(self, model: Any, config: Any):
        self.model, self.config = model, config.get_text_config()

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids."""
        return self.model.embed_input_ids(ids)

    def get_input_embeddings(self) -> Any:
        """The table, without the rows that the engine pads it with."""
        for module in self.model.modules():
            if type(module).__name__ == "VocabParallelEmbedding":
                return SimpleNamespace(weight=module.weight[: self.config.vocab_size])
        return None


def parts_of(model: Any, config: Any, tower: nn.Module) -> Parts:
    """The parts of the engine's `model`, whose `tower` and configuration are a known family's."""
    family = family_of(config)
    if family is None:
        raise NotImplementedError(f"vtc has no row for models of the type {config.model_type!r}")
    text = TextModel(model.get_language_model(), config)
    return Parts(model, Core(model, config), text, [], tower, family)
