"""Explainability-guided: a small network reads from the first layer's attention what the answer will rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.score_pruner import ScorePruner
from vtc.pruners.trained.network_file import read_tensors

from .base import Stop
from .registry import register_pruner
from .signals import AttentionAhead, Signal
from .visual_tokens import VisualTokens

CHANNELS = (32, 64, 128, 256, 512)
KERNEL = 3
LEAST = 1e-3  # of the average attention: less is not told apart
FORMAT = "vtc-explainer-1"
SHIPPED = Path(__file__).resolve().parent / "weights" / "explainer-bundled.safetensors"
HINT = "train one: vtc train explainer --model ..., then weights=FILE"


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
        return predict(dict(self.named_parameters()), attention, valid)


def predict(weights: Mapping[str, Tensor], attention: Tensor, valid: Tensor | None = None) -> Tensor:
    """What a ``RelevanceNetwork`` with these `weights`, by their names, makes of `attention`; see its ``forward``."""
    x, layer = relative(attention, valid)[:, None], 0
    weights = {name: w.to(x.dtype) for name, w in weights.items()}
    while f"depthwise.{layer}.weight" in weights:
        along, across = f"depthwise.{layer}", f"pointwise.{layer}"
        kernel, bias = weights[f"{along}.weight"], weights[f"{along}.bias"]
        x = conv1d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel))
        x = conv1d(x, weights[f"{across}.weight"], weights[f"{across}.bias"]).relu()
        x = x if valid is None else x * valid[:, None]
        layer += 1
    logits = conv1d(x, weights["head.weight"], weights["head.bias"])[:, 0]
    return logits if valid is None else logits.masked_fill(~valid, float("-inf"))


def relative(attention: Tensor, valid: Tensor | None = None) -> Tensor:
    """Logarithm of attention as a multiple of the span's average, so that the number of tokens plays no part.

    Parameters
    ----------
    attention : Tensor
        `[B, N]`, not negative; what is not finite counts as 0.
    valid : Tensor, optional
        `[B, N]` bool; the others become 0, which is the average.

    Returns
    -------
    Tensor
        `[B, N]` float32, ``log(max(a / mean a, 0.001))``.
    """
    real = torch.ones_like(attention, dtype=torch.bool) if valid is None else valid
    a = wide(attention).masked_fill(~(real & attention.isfinite()), 0).clamp(min=0)
    mean = a.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    share = a / mean.clamp(min=torch.finfo(torch.float32).tiny)
    return share.clamp(min=LEAST).log().masked_fill(~real, 0)


def save_network(path: str | Path, network: RelevanceNetwork, about: Mapping[str, str]) -> None:
    """Write a network in half precision as a safetensors file; `about` goes into its metadata."""
    from safetensors.torch import save

    weights = {name: x.detach().half().contiguous() for name, x in network.state_dict().items()}
    shape = {"channels": ",".join(map(str, network.channels)), "kernel": str(network.kernel)}
    Path(path).write_bytes(save(weights, metadata={**about, **shape, "format": FORMAT}))


def load_network(path: str | Path) -> tuple[RelevanceNetwork, dict[str, str]]:
    """A network that ``save_network`` wrote, in float32, and its metadata.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no such network.
    """
    stored, about = read_tensors(Path(path), f"explainer.weights={str(path)!r}", HINT)
    weights = {name: x.float() for name, x in stored.items()}
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
    share = behind.to(wide_dtype(rows)) / behind.sum(1, keepdim=True).clamp(min=1)
    return (wide(rows).mean(1).masked_fill(~behind[..., None], 0) * share[..., None]).sum(1)


@register_pruner("explainer")
@dataclass(kw_only=True)
class Explainer(ScorePruner):
    """Explainability-guided compression (arXiv 2506.01097, ICLR 2026): predicted relevance, before the first layer.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    weights : str, optional
        A network of ``vtc train explainer``, a safetensors file. By default the one that is shipped, which was trained
        on the bundled model and refuses others.

    Notes
    -----
    Stage: before decoder layer 0, so what goes never enters the language model. With A the softmax attention that layer
    0 would give on the full input, per head h and text token t behind the span::

        a_i = mean_h mean_t A[h, t, i]
        score = f(log(a / mean a)),  f: 5 depthwise-separable convolutions along the tokens, then 1x1 to one channel

    f is trained to give, after a softmax, the relevance that gradients through the whole model say each token has for
    the answer (``vtc.eval.inspect.relevance``). O(H T d N) for the attention, O(N sum C C') for f with C = 32 to 512
    channels. The model is frozen; each model needs its own f.

    No code was released. The paper gives the input, the layers and their channels, and the target. OURS are: the kernel
    of 3, ReLU, the 1x1 at the end, the mean over heads, the logarithm of a multiple of the average in the place of the
    bare attention (whose values shrink with N; on the bundled model the logarithm came nearer to the oracle than the
    multiple), and that the instruction is all text behind the span. Kept tokens keep their positions. The queries, keys
    and values of layer 0 are computed for all columns twice, about a third of one layer; the paper needs the queries of
    the text only.

    Limits: convolutions run over the tokens that are there in their order, across rows and crops as well, so a method
    that prunes before changes what f sees. Without text behind a span all tokens look alike.
    """

    weights: str | None = None

    paper: ClassVar[str] = "arXiv 2506.01097"
    stage: ClassVar[str] = "decoder"
    signals: ClassVar[tuple[Signal, ...]] = (AttentionAhead(queries="text"),)
    uses_text: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"weights": "explainer.safetensors"}

    def __post_init__(self) -> None:
        super().__post_init__()
        # read at once: a file that is none is found before any model is loaded
        network, self._about = load_network(SHIPPED if self.weights is None else self.weights)
        self._tensors: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): dict(network.named_parameters())}

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the first layer."""
        return (Stop(self.stage, 0, self.keep),)

    def tensors(self, device: torch.device, heads: int, width: int) -> dict[str, Tensor]:
        """The network's weights by name, if it belongs to a model of so many attention heads and this hidden size.

        Raises
        ------
        ValueError
            If it belongs to another model.
        """
        about, found = self._about, {"heads": str(heads), "width": str(width)}
        if any(about.get(name, value) != value for name, value in found.items()):
            which = "the shipped network" if self.weights is None else f"explainer.weights={self.weights!r}"
            raise ValueError(
                f"{which} was trained on {about.get('model', 'a model')} ({about.get('heads', '?')} heads, hidden "
                f"size {about.get('width', '?')}); this model has {heads} and {width}, and needs a network of its "
                f"own; {HINT}"
            )
        if device not in self._tensors:
            self._tensors[device] = {name: x.to(device) for name, x in self._tensors[torch.device("cpu")].items()}
        return self._tensors[device]

    def score(self, tokens: VisualTokens) -> Tensor:
        """Logits of the predicted relevance, `[B, N]` float32."""
        rows, device = tokens.read(self.signals[0]), tokens.features.device
        weights = self.tensors(device, rows.shape[1], tokens.features.shape[-1])
        attention = mean_attention(rows, tokens.text_valid(after=True).to(rows.device)).to(device)
        full = min(tokens.counts) == tokens.ids.shape[1]
        return predict(weights, attention, None if full else tokens.valid.to(device))
