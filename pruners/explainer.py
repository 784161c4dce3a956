"""Explainability-guided: a small network reads from the first layer's attention what the answer will rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import ScorePruner, Stop, VisualTokens
from .registry import register_pruner
from .signals import AttentionAhead, Signal

CHANNELS = (32, 64, 128, 256, 512)
KERNEL = 3
FORMAT = "vtc-explainer-1"
SHIPPED = Path(__file__).resolve().parent / "weights" / "explainer-bundled.safetensors"
HINT = "train one: vtc train-explainer --model ..., then weights=FILE"


class RelevanceNetwork(nn.Module):
    """Depthwise-separable convolutions along the tokens of a span, from first-layer attention to relevance.

    Parameters
    ----------
    channels : sequence of int
        Channels behind each layer; the paper's are 32, 64, 128, 256, 512.
    kernel : int
        Tokens that a layer sees at once, odd. The paper does not give it.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, kernel: int = KERNEL):
        super().__init__()
        if not channels or min(channels) < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"channels={tuple(channels)} must be ints >= 1 and kernel={kernel} an odd int >= 1")
        self.channels, self.kernel = tuple(channels), kernel
        inner = (1, *channels[:-1])
        self.depthwise = nn.ModuleList(nn.Conv1d(c, c, kernel, padding=kernel // 2, groups=c) for c in inner)
        self.pointwise = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in zip(inner, channels, strict=True))
        self.head = nn.Conv1d(channels[-1], 1, 1)

    def forward(self, attention: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits of the relevance.

        Parameters
        ----------
        attention : Tensor
            `[B, N]` attention to each token.
        valid : Tensor, optional
            `[B, N]` bool; the others are padding, which no token sees.

        Returns
        -------
        Tensor
            `[B, N]` float32, -inf at padding: their softmax is the relevance.
        """
        x = relative(attention, valid)[:, None]
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(depthwise(x)).relu()
            x = x if valid is None else x * valid[:, None]
        logits = self.head(x)[:, 0]
        return logits if valid is None else logits.masked_fill(~valid, float("-inf"))


def relative(attention: Tensor, valid: Tensor | None = None) -> Tensor:
    """Attention as a multiple of the span's average, so that the number of tokens plays no part.

    Parameters
    ----------
    attention : Tensor
        `[B, N]`, not negative; what is not finite counts as 0.
    valid : Tensor, optional
        `[B, N]` bool; the others become 0.

    Returns
    -------
    Tensor
        `[B, N]` float32, ``a / mean a``.
    """
    real = torch.ones_like(attention, dtype=torch.bool) if valid is None else valid
    a = attention.float().masked_fill(~(real & attention.isfinite()), 0).clamp(min=0)
    mean = a.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return a / mean.clamp(min=torch.finfo(torch.float32).tiny)


def save_network(path: str | Path, network: RelevanceNetwork, about: Mapping[str, str]) -> None:
    """Write a network in half precision as a safetensors file; `about` goes into its metadata."""
    from safetensors.torch import save_file

    weights = {name: x.detach().half().contiguous() for name, x in network.state_dict().items()}
    shape = {"channels": ",".join(map(str, network.channels)), "kernel": str(network.kernel)}
    save_file(weights, path, metadata={**about, **shape, "format": FORMAT})


def load_network(path: str | Path) -> tuple[RelevanceNetwork, dict[str, str]]:
    """A network that ``save_network`` wrote, in float32, and its metadata.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no such network.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"explainer.weights={str(path)!r} is no file here; {HINT}")
    try:
        stored = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"explainer.weights: {str(path)!r} is no safetensors file ({error})") from error
    with stored:
        about = stored.metadata() or {}
        weights = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118 (no mapping)
    if about.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} holds no explainer's network (its metadata lack format={FORMAT}); {HINT}")
    try:
        network = RelevanceNetwork([int(c) for c in about["channels"].split(",")], int(about["kernel"]))
        network.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r}: the network's weights don't fit its metadata ({error})") from error
    return network.requires_grad_(False).eval(), about


def mean_attention(rows: Tensor, behind: Tensor) -> Tensor:
    """Mean over heads and the text behind a span.

    Parameters
    ----------
    rows : Tensor
        `[B, H, T, N]` attention of the text tokens to the visual ones.
    behind : Tensor
        `[B, T]` bool: which of the text tokens stand behind the span.

    Returns
    -------
    Tensor
        `[B, N]` float32; zeros where no text stands behind.
    """
    share = behind.float() / behind.sum(1, keepdim=True).clamp(min=1)
    return (rows.float().mean(1).masked_fill(~behind[..., None], 0) * share[..., None]).sum(1)


@register_pruner("explainer")
@dataclass(kw_only=True)
class Explainer(ScorePruner):
    """Explainability-guided compression (arXiv 2506.01097, ICLR 2026): predicted relevance, before the first layer.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    weights : str, optional
        A network of ``vtc train-explainer``, a safetensors file; read when first used. By default the one that is
        shipped, which was trained on the bundled model and refuses others.

    Notes
    -----
    Stage: before decoder layer 0, so what goes never enters the language model. With A the softmax attention that layer
    0 would give on the full input, per head h and text token t behind the span::

        a_i = mean_h mean_t A[h, t, i]
        score = f(a / mean a),  f: 5 depthwise-separable convolutions along the tokens, then 1x1 to one channel

    f is trained to give, after a softmax, the relevance that gradients through the whole model say each token has for
    the answer (``vtc.eval.relevance``). O(H T d N) for the attention, O(N sum C C') for f with C = 32 to 512 channels.
    The model is frozen; each model needs its own f.

    No code was released. The paper gives the input, the layers and their channels, and the target. OURS are: the kernel
    of 3, ReLU, the 1x1 at the end, the mean over heads, the multiple of the average in the place of the bare attention
    (whose values shrink with N), and that the instruction is all text behind the span. Kept tokens keep
    their positions. The queries, keys and values of layer 0 are computed for all columns twice, about a third of one
    layer; the paper needs the queries of the text only.

    Limits: convolutions run over the tokens that are there in their order, across rows and crops as well, so a method
    that prunes before changes what f sees. Without text behind a span all tokens look alike.
    """

    weights: str | None = None

    paper: ClassVar[str] = "arXiv 2506.01097"
    stage: ClassVar[str] = "decoder"
    signals: ClassVar[tuple[Signal, ...]] = (AttentionAhead(queries="text"),)
    uses_text: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and not isinstance(self.weights, str):
            raise TypeError(f"explainer.weights must be the name of a file, got {self.weights!r}")
        self._networks: dict[tuple[torch.device, int, int], RelevanceNetwork] = {}

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the first layer."""
        return (Stop(self.stage, 0, self.keep),)

    def network(self, device: torch.device, heads: int, width: int) -> RelevanceNetwork:
        """The network, if it belongs to a model of so many attention heads and this hidden size.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is none, or it belongs to another model.
        """
        key = (device, heads, width)
        if key not in self._networks:
            network, about = load_network(self.weights or SHIPPED)
            given = {"heads": str(heads), "width": str(width)}
            if any(about.get(name, value) != value for name, value in given.items()):
                which = "the shipped network" if self.weights is None else f"explainer.weights={self.weights!r}"
                raise ValueError(
                    f"{which} was trained on {about.get('model', 'a model')} ({about.get('heads', '?')} heads, hidden "
                    f"size {about.get('width', '?')}); this model has {heads} and {width}, and needs a network of its "
                    f"own; {HINT}"
                )
            self._networks[key] = network.to(device)
        return self._networks[key]

    def score(self, tokens: VisualTokens) -> Tensor:
        """Logits of the predicted relevance, `[B, N]` float32."""
        rows = tokens.read(self.signals[0])
        network = self.network(tokens.features.device, rows.shape[1], tokens.features.shape[-1])
        behind = tokens.text_valid(after=True).to(rows.device)
        attention = mean_attention(rows, behind).to(tokens.features.device)
        full = min(tokens.counts) == tokens.ids.shape[1]
        return network(attention, None if full else tokens.valid.to(attention.device))
