"""Trains the network: targets, batches, the loop that resumes, and what is said of the result."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc.eval.train.basics.loop import Stateful, load_checkpoint, save_checkpoint
from vtc.pruners.base import resolve_keep
from vtc.pruners.explainer import RelevanceNetwork
from vtc.pruners.primitives.ranking import top_k

from .options import TrainSettings
from .relevance_labels import Sample

DROPPED = 0.5  # share of a span's tokens whose relevance the target sets to zero
KEEPS = (0.25, 0.11)  # where the overlap with the oracle's choice is measured
TOKENS_AT_ONCE = 16384  # a batch is worked through in parts, so that its memory does not grow with the images


Predictor = Callable[[Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Figures:
    """What a predictor is worth on some samples.

    ``kl`` is the mean of ``KL(R* || R~)`` in nats, ``overlap`` per keep ratio the mean share of the oracle's top tokens
    that are among the predictor's.
    """

    kl: float
    overlap: dict[str, float]


def target(relevance: Tensor, valid: Tensor | None = None) -> Tensor:
    """What the network should say: the lower half of the relevance set to zero, the rest divided by its sum.

    Parameters
    ----------
    relevance : Tensor
        `[B, N]`, not negative, above zero somewhere in every row.
    valid : Tensor, optional
        `[B, N]` bool, the others are padding.

    Returns
    -------
    Tensor
        `[B, N]` float32; of `n` tokens ``floor(n / 2)`` are zero, on ties those of the highest index.
    """
    real = torch.ones_like(relevance, dtype=torch.bool) if valid is None else valid
    order = top_k(relevance, relevance.shape[1], real)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    count = real.sum(1, keepdim=True)
    kept = relevance.float().masked_fill(rank >= count - (count * DROPPED).floor().long(), 0)
    return kept / kept.sum(1, keepdim=True)


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """``KL(wanted || softmax(logits))`` of each row, `[B]`; `wanted` `[B, N]` sums to 1, logits may be -inf where 0."""
    log_p = logits.log_softmax(-1).masked_fill(wanted == 0, 0)
    return (torch.xlogy(wanted, wanted) - wanted * log_p).sum(-1)


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention and relevance `[B, N]` of some samples, padded with zeros, and which are real (None: all of them)."""
    lengths = torch.tensor([len(s.attention) for s in samples])
    if lengths.min() == lengths.max():
        return torch.stack([s.attention for s in samples]), torch.stack([s.relevance for s in samples]), None
    attention = pad_sequence([s.attention for s in samples], batch_first=True)
    relevance = pad_sequence([s.relevance for s in samples], batch_first=True)
    return attention, relevance, torch.arange(attention.shape[1]) < lengths[:, None]


def parts_of(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """`samples` in parts of about ``TOKENS_AT_ONCE`` tokens."""
    longest = max(len(s.attention) for s in samples)
    size = max(1, TOKENS_AT_ONCE // longest)
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def split(samples: Sequence[Sample], held_out: float) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and samples to judge by; all questions of an image are on the same side.

    Raises
    ------
    ValueError
        If one side would be empty.
    """
    images = sorted({s.image_id for s in samples}, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, math.floor(held_out * len(images) + 0.5))
    if count >= len(images):
        raise ValueError(
            f"{len(samples)} rightly answered questions about {len(images)} images are too few to train on some and "
            "judge by others: give more with --limit or --data"
        )
    judged = set(images[:count])
    return [s for s in samples if s.image_id not in judged], [s for s in samples if s.image_id in judged]


@torch.no_grad()
def figures(samples: Sequence[Sample], logits_of: Predictor) -> Figures:
    """How near a predictor comes to the oracle.

    Parameters
    ----------
    logits_of : callable
        Gets attention `[B, N]` and what is real of it, gives logits `[B, N]`.
    """
    kl, found = 0.0, dict.fromkeys(KEEPS, 0.0)
    for part in parts_of(samples):
        attention, relevance, valid = collate(part)
        logits = logits_of(attention, valid)
        logits = logits if valid is None else logits.masked_fill(~valid, float("-inf"))
        kl += float(divergence(logits, target(relevance, valid)).sum())
        for keep in KEEPS:
            for row, sample in enumerate(part):
                n = len(sample.attention)
                k = resolve_keep(keep, n)
                ours, theirs = (top_k(x[row : row + 1, :n], k)[0].tolist() for x in (logits, relevance))
                found[keep] += len({*ours} & {*theirs}) / k
    return Figures(kl / len(samples), {f"{keep:g}": value / len(samples) for keep, value in found.items()})


def attention_alone(attention: Tensor, valid: Tensor | None) -> Tensor:
    """The first layer's attention itself as a predictor: logits whose softmax it is, over the span."""
    return attention.clamp(min=torch.finfo(torch.float32).tiny).log()


def nothing(attention: Tensor, valid: Tensor | None) -> Tensor:
    """A predictor that knows nothing, for its KL; its choice is the first tokens."""
    return torch.zeros_like(attention)


def train(
    samples: Sequence[Sample],
    judged: Sequence[Sample],
    settings: TrainSettings,
    checkpoint: Path,
    done: Callable[[int, dict[str, float]], object] = lambda epoch, row: None,
    stop_after: int | None = None,
) -> tuple[RelevanceNetwork, list[dict[str, float]]]:
    """Train a network, or go on training it.

    Parameters
    ----------
    samples, judged : sequence of Sample
        To learn from and, after every epoch, to judge by.
    settings : TrainSettings
        The numbers.
    checkpoint : Path
        Where the state goes after every epoch; what is there is gone on from.
    done : callable
        Is told of each finished epoch: how many there are, and its figures.
    stop_after : int, optional
        End after so many epochs of this call (for tests).

    Returns
    -------
    RelevanceNetwork
        Of the last epoch.
    list of dict
        Per epoch the loss on `samples` and the KL on `judged`.
    """
    torch.manual_seed(settings.seed)
    network = RelevanceNetwork()
    optimizer = torch.optim.Adam(network.parameters(), settings.rate)
    history = History()
    state: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "history": history}
    start = load_checkpoint(checkpoint, state)
    done(start, {})
    for epoch in range(start, settings.epochs):
        if stop_after is not None and epoch - start >= stop_after:
            break
        loss = _epoch(network, optimizer, samples, settings, epoch)
        row = {"epoch": epoch + 1, "loss": round(loss, 6), "held_out": round(figures(judged, network).kl, 6)}
        history.rows.append(row)
        save_checkpoint(checkpoint, state, epoch + 1)
        done(1, row)
    return network, history.rows


class History:
    """Rows of a training run, as something that a checkpoint can hold."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over rows."""
        self.rows = list(state["rows"])


def _epoch(
    network: RelevanceNetwork,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    settings: TrainSettings,
    epoch: int,
) -> float:
    """One pass in an order that depends on seed and epoch alone; the mean loss."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(samples), generator=generator).tolist()
    total = 0.0
    for first in range(0, len(order), settings.batch_size):
        batch = [samples[i] for i in order[first : first + settings.batch_size]]
        optimizer.zero_grad()
        for part in parts_of(batch):
            attention, relevance, valid = collate(part)
            loss = divergence(network(attention, valid), target(relevance, valid)).sum()
            (loss / len(batch)).backward()
            total += float(loss.detach())
        optimizer.step()
    return total / len(samples)


def as_plain(found: Figures) -> dict[str, Any]:
    """Figures for a JSON file."""
    return asdict(found)
