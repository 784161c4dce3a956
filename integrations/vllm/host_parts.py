"""The engine's model in the shape in which vtc's host side asks a transformers model for its parts."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.families import family_of
from vtc.models.layout.model_parts import Parts

# what rearranges patches is asked of transformers' own class, so that it is the same code on both sides
SPARE = "_vtc_spare"
REARRANGING = ("pack_image_features", "pixel_shuffle")


class Core:
    """The engine's model `model` as a composite model of transformers with configuration `config`."""

    def __init__(self, model: nn.Module, config: Any):
        self.model, self.config = model, config

    def get_submodule(self, path: str) -> nn.Module:
        """A part of the engine's model; see ``plain``."""
        return plain(self.model.get_submodule(path))

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


def plain(module: nn.Module) -> nn.Module:
    """`module` with the engine's linear layers as torch's, of the same weights, for methods that read those.

    The engine's own layers run where it is called.
    """
    if isinstance(module, nn.Linear) or not any(_is_linear(m) for m in module.modules()):
        return module
    if _is_linear(module):
        return _PlainLinear(module)
    shell = copy.copy(module)
    shell._modules = {name: m if m is None else plain(m) for name, m in module._modules.items()}
    return shell


def spare(module: nn.Module) -> None:
    """Keep the weights of a module's linear layers as they were loaded: on CPUs vLLM repacks and drops them."""
    layer: Any
    for layer in module.modules():
        if _is_linear(layer) and isinstance(getattr(layer, "weight", None), Tensor):
            bias = getattr(layer, "bias", None)
            layer.__dict__[SPARE] = (layer.weight.detach().clone(), None if bias is None else bias.detach().clone())


def _is_linear(module: nn.Module) -> bool:
    return any(cls.__name__ == "LinearBase" for cls in type(module).__mro__)


class _PlainLinear(nn.Linear):
    """A linear layer of the engine; it runs as it does there, and has its weights where they are whole."""

    def __init__(self, layer: Any):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.input_size, layer.output_size
        self.__dict__["layer"] = layer  # no part of ours: its weights are not listed twice
        weight, bias = layer.__dict__.get(SPARE) or (layer.weight, getattr(layer, "bias", None))
        if tuple(weight.shape) != (self.out_features, self.in_features):  # quantised: whoever reads it says so
            weight = torch.empty(self.out_features, self.in_features, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, input: Tensor) -> Tensor:
        """What the engine's layer gives, alone or beside a bias not yet added."""
        found = self.__dict__["layer"](input)
        return found[0] if isinstance(found, tuple) else found


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
