"""What the last prefill really did."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

from torch import LongTensor, Tensor

from vtc.models.layout.spans import Batch
from vtc.pruners.layout import Layout


class Span(NamedTuple):
    """One image, crop or video of one sample.

    Attributes
    ----------
    sample : int
        Row of the batch.
    item : int
        Index over the batch among what was given to ``get_image_features`` / ``get_video_features``.
    modality : str
        ``"image"`` or ``"video"``.
    columns : LongTensor
        Positions of its tokens in the sequence as given, padding included.
    """

    sample: int
    item: int
    modality: str
    columns: LongTensor


class Step(NamedTuple):
    """One pruning step.

    Attributes
    ----------
    stage : str
        ``"vision"``, ``"input"`` or ``"decoder"``.
    layer : int or None
        Encoder or decoder layer before which it pruned; None at the input stage.
    kept : list of LongTensor
        Per span the sorted original token ids (0-based inside the span) still present after the step.
    loan : bool
        Whether the others are back behind the layer: `kept` is what that one layer was given.
    sizes : list of Tensor, optional
        From where a method that ``calibrates`` has pruned: how many tokens each of `kept` stands for.
    """

    stage: str
    layer: int | None
    kept: list[LongTensor]
    loan: bool = False
    sizes: list[Tensor] | None = None


@dataclass(repr=False)
class Report:
    """Spans and pruning steps of one prefill; tensors are copied to the CPU on first reading.

    Attributes
    ----------
    depth : int
        Decoder layers; 0 for a bare ViT.
    selection_seconds : float or None
        Time spent on choosing and dropping, the device synchronised around it; None unless ``model.vtc.timing`` is on.
    asked_alone : dict
        By sample the tokens that the language model read before the prompt, where a method reads ``QuestionState``.
    own_flops : dict
        By sample the FLOPs of a method's own network, where it counts them (a captioner).
    """

    depth: int
    batch: Batch | None = None
    selection_seconds: float | None = None
    asked_alone: dict[int, int] = field(default_factory=dict)
    own_flops: dict[int, int] = field(default_factory=dict)
    _steps: list[tuple[str, int | None, Tensor, list[int], Tensor | None]] = field(default_factory=list)
    _loans: list[tuple[int, Tensor, int]] = field(default_factory=list)

    def add(self, stage: str, layer: int | None, ids: Tensor, present: list[int], sizes: Tensor | None = None) -> None:
        """Record a step: `ids` `[S, n]` padded with -1, of which span `i` has `present[i]`, and their `sizes`."""
        self._steps.append((stage, layer, ids, present, sizes))
        self.__dict__.pop("steps", None)

    def add_loan(self, layer: int, ids: Tensor, count: int) -> None:
        """Record that `count` tokens of all spans entered a layer that the others went round: `ids` `[S, n]` or -1."""
        self._loans.append((layer, ids, count))
        self.__dict__.pop("steps", None)

    @cached_property
    def spans(self) -> list[Span]:
        """The spans of the prefill; empty for a text-only one."""
        if self.batch is None:
            return []
        columns = self.batch.columns.cpu()
        return [
            Span(s.sample, s.item, s.modality, columns[i, :n].clone())  # type: ignore[arg-type]
            for i, (s, n) in enumerate(zip(self.batch.spans, self.batch.lengths, strict=True))
        ]

    @cached_property
    def steps(self) -> list[Step]:
        """The pruning steps, in forward order."""
        found = []
        for stage, layer, ids, present, sizes in self._steps:
            kept, counts = (
                None if x is None else [row[:n].clone() for row, n in zip(x.cpu(), present, strict=True)]
                for x in (ids, sizes)
            )
            found.append(Step(stage, layer, kept, sizes=counts))  # type: ignore[arg-type]
        for layer, ids, _ in self._loans:
            found.append(Step("decoder", layer, [row[row >= 0] for row in ids.cpu()], loan=True))
        return found

    @cached_property
    def layouts(self) -> list[Layout]:
        """Where the tokens of each span sit in the picture."""
        return [] if self.batch is None else self.batch.layouts()

    @property
    def pictures(self) -> list[list[int]]:
        """Indices of the spans that a method with ``joins_crops`` took for one picture, the thumbnail first."""
        found = self.batch.pictures if self.batch is not None else None
        return [list(picture.spans) for picture in found or []]

    @property
    def tokens_total(self) -> int:
        """Visual tokens before any pruning, over all spans."""
        return sum(self.batch.lengths) if self.batch is not None else 0

    @property
    def tokens_kept(self) -> int:
        """Visual tokens left after the last step, over all spans; those that went round a layer are back."""
        return sum(self._steps[-1][3]) if self._steps else self.tokens_total

    @property
    def tokens_per_layer(self) -> list[int]:
        """Visual tokens that each decoder layer saw, over all spans."""
        counts, now = [], self.tokens_total
        for stage, _, _, present, _ in self._steps:
            now = sum(present) if stage != "decoder" else now
        for layer in range(self.depth):
            for stage, at, _, present, _ in self._steps:
                if stage == "decoder" and at == layer:
                    now = sum(present)
            counts.append(now)
        for layer, _, count in self._loans:
            counts[layer] = count
        return counts

    @property
    def mean_tokens_per_layer(self) -> float:
        """Visual tokens per decoder layer, averaged over layers and summed over spans."""
        return sum(self.tokens_per_layer) / self.depth if self.depth else 0.0

    def __repr__(self) -> str:
        """The same line, for a notebook's cell that ends in a report."""
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        if self.batch is None:
            return "text only"
        spans = len(self.batch.spans)
        steps = ", ".join(
            f"{stage}{'' if layer is None else f' layer {layer}'}: {sum(present)}"
            for stage, layer, _, present, _ in self._steps
        )
        if self._loans:
            layers, counts = [str(layer) for layer, _, _ in self._loans], [str(n) for _, _, n in self._loans]
            steps += f"{steps and ', '}decoder layers {', '.join(layers)} alone: {', '.join(counts)}"
        mean = f"; mean per decoder layer {self.mean_tokens_per_layer:.1f}" if self.depth else ""  # a bare ViT has none
        return (
            f"{spans} span{'' if spans == 1 else 's'}, {self.tokens_total} visual tokens -> {self.tokens_kept}"
            f" ({steps or 'nothing pruned'}){mean}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: numbers on the CPU, and nothing of the model."""
        steps = [(*at, ids.cpu(), n, None if sizes is None else sizes.cpu()) for *at, ids, n, sizes in self._steps]
        batch = None if self.batch is None else self.batch.alone()
        loans = [(layer, ids.cpu(), count) for layer, ids, count in self._loans]
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**own, "batch": batch, "_steps": steps, "_loans": loans}
