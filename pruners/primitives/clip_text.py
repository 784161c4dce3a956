"""Image-text relevance by CLIP: the text tower of a transformers or open_clip model, and its image projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

OPEN_CLIP = "open_clip:"


def segments(ids: Sequence[int], room: int) -> list[list[int]]:
    """Cut token ids into pieces of at most `room`; no ids are one empty piece."""
    return [list(ids[i : i + room]) for i in range(0, max(1, len(ids)), room)]


class ClipText:
    """Text and patch embeddings in CLIP's common space, float32 unit vectors `[.., d]`.

    Attributes
    ----------
    width : int
        What the image projection reads, D_enc.
    """

    projection: Tensor
    _modules: list[nn.Module]

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, torch.device("cpu")
        if name.startswith(OPEN_CLIP):
            self._open_clip(name.removeprefix(OPEN_CLIP))
        else:
            self._transformers()
        self.width = int(self.projection.shape[0])
        self.to(device)

    def to(self, device: torch.device) -> ClipText:
        """Move it, in place."""
        self.device, self.projection = device, self.projection.to(device)
        for module in self._modules:
            module.to(device)
        return self

    def _loaded(self, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(
                f"text_encoder={self.name!r} can't be loaded; without a network it must be there already, cached or "
                f"as a local folder or file. Without text_encoder the method needs no CLIP. The loader says: {error}"
            ) from error

    def _transformers(self) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        kind = self._loaded(lambda: AutoConfig.from_pretrained(self.name)).model_type
        if kind != "clip":  # transformers would go on with random weights
            raise ValueError(
                f"text_encoder={self.name!r} is a model of type {kind!r}; it must be a CLIP, text and image"
            )
        # the image tower is not needed
        model = self._loaded(lambda: CLIPModel.from_pretrained(self.name, dtype=torch.float32)).eval()
        tokenizer = self._loaded(lambda: AutoTokenizer.from_pretrained(self.name))
        self.post_norm: nn.Module = model.vision_model.post_layernorm
        self.projection = model.visual_projection.weight.detach().T
        text, output = model.text_model, model.text_projection
        self._modules = [self.post_norm, text, output]
        self.length = int(model.config.text_config.max_position_embeddings)
        self.ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)

        # no mask: the towers are causal and read the end token, so padding behind it is never seen
        self._encode: Any = lambda ids: output(text(input_ids=ids).pooler_output)
        self._ids: Any = lambda words: tokenizer(words, add_special_tokens=False)["input_ids"]

    def _open_clip(self, given: str) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(f"text_encoder={self.name!r} needs open_clip: pip install open_clip_torch") from error
        # "hf-hub:ORG/REPO" and "local-dir:PATH" are names of their own
        architecture, _, pretrained = (given, "", "") if ":" in given.partition("/")[0] else given.partition("/")
        # required, or else open_clip would go on with random weights
        options = {"pretrained": pretrained or None, "precision": "fp32", "require_pretrained": True}
        model = self._loaded(lambda: open_clip.create_model(architecture, **options)).eval()
        tokenizer = self._loaded(lambda: open_clip.get_tokenizer(architecture))
        projection, post_norm = getattr(model.visual, "proj", None), getattr(model.visual, "ln_post", None)
        if not isinstance(projection, Tensor) or post_norm is None or not hasattr(tokenizer, "sot_token_id"):
            raise NotImplementedError(
                f"text_encoder={self.name!r}: only open_clip's own ViT and text towers can embed patches and long texts"
            )
        self.post_norm, self.projection = post_norm, projection.detach()
        del model.visual
        self._modules = [post_norm, model]
        self.length = int(model.context_length)
        self.ends = (tokenizer.sot_token_id, tokenizer.eot_token_id)
        self._encode = lambda ids: model.encode_text(pad(ids, (0, self.length - ids.shape[1])))
        self._ids = tokenizer.encode

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Mean of the unit embeddings of each text's segments, `[S, d]`."""
        pieces = [segments(self._ids(text), self.length - 2) for text in texts]
        rows = [torch.tensor([self.ends[0], *piece, self.ends[1]]) for found in pieces for piece in found]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        embedded = normalize(self._encode(ids.to(self.device)), dim=-1)
        return torch.stack([part.mean(0) for part in embedded.split([len(found) for found in pieces])])

    @torch.no_grad()
    def patches(self, x: Tensor) -> Tensor:
        """Unit embeddings of the image tower's states `[.., D_enc]`."""
        if x.shape[-1] != self.width:
            raise ValueError(
                f"text_encoder={self.name!r} embeds image states of width {self.width}, this model's tower gives "
                f"{x.shape[-1]}: it must be the CLIP that the tower was taken from; else leave text_encoder out"
            )
        return normalize(self.post_norm(x.float().to(self.device)) @ self.projection, dim=-1)


@lru_cache(maxsize=2)
def read_clip(name: str) -> ClipText:
    """See ``clip_text``; on the CPU until that moves it."""
    return ClipText(name, torch.device("cpu"))


def clip_text(name: str, device: torch.device) -> ClipText:
    """The text encoder `name` on `device`, read once: a transformers CLIP (folder or hub id), or an open_clip model.

    Those are named ``open_clip:ARCHITECTURE/PRETRAINED`` (a tag, or the path of a file), ``open_clip:hf-hub:ORG/REPO``
    or ``open_clip:local-dir:PATH``.

    Raises
    ------
    ImportError, OSError, ValueError
        Without open_clip, where the weights can't be had, or where they are of another kind of model.
    """
    found = read_clip(name)
    return found if found.device == device else found.to(device)
