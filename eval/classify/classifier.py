"""Loading an image classifier: a timm ViT, or open_clip's two towers with class names as prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vtc.eval.terminal.option_checks import check_choice, device_of
from vtc.eval.vlm.loading import Loaded
from vtc.models.tower.bare_vit import find_vit

from .sources import LOCAL, split_source

TEMPLATES = ("a photo of a {}.",)  # CLIP's own first one
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Classifier(Loaded):
    """A classifier with everything that its answers depend on; ``processor`` makes an image `[3, H, W]`.

    Attributes
    ----------
    outputs : int
        How many classes it tells apart.
    logits : callable
        Images `[B, 3, H, W]` to `[B, outputs]`.
    names : sequence of str, optional
        The model's own names of its outputs.
    described : dict
        Architecture and preprocessing, and the prompts of zero-shot classes.
    tokenizer : callable, optional
        Of a text tower.
    """

    outputs: int = 0
    logits: Callable[[Tensor], Tensor] = field(default=nn.Identity(), repr=False)
    names: Sequence[str] | None = None
    described: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    def batch(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the model takes them, `[B, 3, H, W]` on its device."""
        first = next(self.model.parameters())
        return torch.stack([self.processor(image) for image in images]).to(first.device, first.dtype)


def load_classifier(source: str, device: str = "auto", dtype: str = "auto") -> Classifier:
    """Load ``timm:NAME[@FILE]`` or ``open_clip:ARCH@TAG_OR_FILE``, or a folder in either's format.

    Parameters
    ----------
    source : str
        ``timm:NAME`` takes timm's pretrained weights (hub), ``timm:NAME@FILE`` those of a file, ``timm:FOLDER`` both
        from a folder with ``config.json``; ``timm:digits`` is the bundled one. ``open_clip:`` likewise, with a tag.
    device, dtype : str
        As for ``vtc.eval.vlm.loading.load_model``; "auto" is float32.

    Returns
    -------
    Classifier
        One of open_clip has no outputs yet, see ``zero_shot``.

    Raises
    ------
    ValueError
        If it can't be loaded; the message is one line.
    NotImplementedError
        If it is no ViT that can be pruned.
    """
    check_choice("dtype", dtype, DTYPES)
    kind, name, weights = split_source(source)
    place = device_of(device)
    try:
        found = (_timm if kind == "timm" else _open_clip)(name, weights)
    except ImportError:
        package = {"timm": "timm", "open_clip": "open_clip_torch"}[kind]
        raise ValueError(f"--model {source!r} needs {package}: pip install {package}") from None
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, TypeError) as e:
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise ValueError(f"can't load the model {source!r}: {reason}") from None
    if find_vit(found.model) is None:
        raise NotImplementedError(f"{source} is a {type(found.model).__name__}, no VisionTransformer of {kind}")
    found.model = found.model.to(place, getattr(torch, "float32" if dtype == "auto" else dtype)).eval()
    found.name = source
    return found


def _identity(model: nn.Module, described: Mapping[str, Any]) -> str:
    """Hash of architecture and weights, wherever they came from."""
    digest = hashlib.sha256(repr(sorted(described.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _words(transform: Any) -> str:
    """A transform as text, without the addresses that Python gives functions: they differ from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def _timm(name: str, weights: str) -> Classifier:
    import timm

    given: dict[str, Any] = {"checkpoint_path": weights} if weights else {"pretrained": True}
    model: Any = timm.create_model(name, **given)
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    config = model.pretrained_cfg
    named = config.get("label_names") or _imagenet(model)
    described = {"architecture": str(config.get("architecture", name)), "preprocessing": _words(transform)}
    return Classifier(
        model, transform, name, _identity(model, described), int(model.num_classes), model, named, described
    )


def _imagenet(model: Any) -> list[str] | None:
    """ImageNet's synset ids in the order of the outputs, for a model that was trained on it."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset).label_names() if subset else None


def _open_clip(name: str, weights: str) -> Classifier:
    import open_clip

    if not weights and not name.startswith((LOCAL, "hf-hub:")):
        tags = open_clip.list_pretrained_tags_by_model(name)
        known = f"; there is {', '.join(tags)}" if tags else ""
        raise ValueError(f"say which weights: open_clip:{name}@TAG or @FILE{known}")
    found: Any = open_clip.create_model_and_transforms(name, pretrained=weights or None)
    model, transform = found[0], found[2]
    architecture = name.partition(":")[0] if name.startswith(LOCAL) else name
    described = {"architecture": architecture, "preprocessing": _words(transform)}
    return Classifier(
        model,
        transform,
        name,
        _identity(model, described),
        described=described,
        tokenizer=open_clip.get_tokenizer(name),
    )


@torch.no_grad()
def zero_shot(clip: Classifier, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Classifier:
    """Make outputs of class names: the cosine between an image and the mean of a class's prompts.

    Parameters
    ----------
    clip : Classifier
        From ``load_classifier("open_clip:...")``; its text tower runs here, once and unpruned.
    classes : sequence of str
        What the prompts call the classes, in the order of the outputs.
    templates : sequence of str
        Prompts with ``{}`` for the class.
    """
    model: Any = clip.model
    rows = []
    for name in classes:
        words = clip.tokenizer([template.format(name) for template in templates]).to(clip.device)
        prompts = nn.functional.normalize(model.encode_text(words).float(), dim=-1)
        rows.append(nn.functional.normalize(prompts.mean(0), dim=-1))
    text, scale = torch.stack(rows), float(model.logit_scale.exp())

    def logits(images: Tensor) -> Tensor:
        seen = nn.functional.normalize(model.encode_image(images).float(), dim=-1)
        return scale * seen @ text.T

    described = clip.described | {"prompts": [t.format(c) for c in classes for t in templates]}
    return Classifier(
        clip.model, clip.processor, clip.name, clip.identity, len(classes), logits, list(classes), described
    )
