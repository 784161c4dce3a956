"""Methods that keep another number than asked: fewer, more, everything but one; ragged, merged, at every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from adaptive_pruner import Of
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from contracts import outcome
from methods import Setting, cells
from torch import Tensor
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


def size(order: int, n: int) -> int:
    """From one token to all but none of `n`, on both sides of the budget; half of the few of a small span."""
    return (1, n // 2, n, n - 1)[order % 4] if n > 4 else max(1, n // 2)


@dataclass(kw_only=True, eq=False)
class Varying(vtc.Pruner):
    """The longest tokens of a span, as many as its place in the sample says, -1 strewn between."""

    name: ClassVar[str] = "varying"
    layer: int | None = None
    keep: float = 0.4
    at: str | None = None
    all_in_one: bool = True

    adaptive_count = True
    __hash__ = object.__hash__

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        return self.all_in_one

    @property
    def stage(self) -> str:  # type: ignore[override]
        return self.at or ("input" if self.layer is None else "decoder")

    def __str__(self) -> str:
        return f"varying-{self.stage}-{'ragged' if self.all_in_one else 'grouped'}"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        order = tokens.features.float().norm(dim=-1).masked_fill(~tokens.valid, float("-inf"))
        order = order.sort(dim=1, descending=True, stable=True).indices
        taken = torch.arange(order.shape[1]) < torch.tensor(
            [[size(i, n)] for i, n in zip(tokens.order, tokens.counts, strict=True)]
        )
        unused = torch.full_like(order, -1)
        wide = torch.stack([unused, torch.where(taken, order, -1)], 2).flatten(1)  # -1 before every column
        return wide if order.shape[1] > 4 else wide[:, 1::2]


class Averaging(Varying):
    """The same, each kept token moved half-way to the mean of its span."""

    merges = True

    def __str__(self) -> str:
        return super().__str__() + "-merged"

    def select(self, tokens: vtc.VisualTokens, k: int) -> vtc.Merged:  # type: ignore[override]
        index = super().select(tokens, k)
        width = tokens.features.shape[-1]
        kept = tokens.features.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, width))
        mean = tokens.features.sum(1, keepdim=True) / tokens.valid.sum(1)[:, None, None]
        return vtc.Merged(index, (kept + mean) / 2)


METHODS = [Varying(), Varying(layer=2), Varying(all_in_one=False), Averaging(), Averaging(layer=2)]
SETTINGS = [Of(m) for m in METHODS]  # type: ignore[arg-type]
IN_THE_TOWER = [Of(Varying(at="vision", layer=1))]  # type: ignore[arg-type]


@pytest.mark.parametrize(("setting", "family"), cells([*SETTINGS, *IN_THE_TOWER], FAMILIES))
def test_pruned_equals_masked(setting: Setting, family: str) -> None:
    pruned_equals_masked(setting, family, "ragged")


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_batch_equals_one_by_one(setting: Setting, family: str) -> None:
    batch_equals_one_by_one(setting, family, "text_row")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_says_the_real_counts(family: str) -> None:
    """On both sides of the budget, of one batch; and the cache holds as much."""
    for method in (METHODS[1], METHODS[4]):
        pruned = outcome(Of(method), family, "ragged")  # type: ignore[arg-type]
        report = pruned.forward_report
        orders = [sum(s.sample == span.sample for s in report.spans[:i]) for i, span in enumerate(report.spans)]
        content = [layout.content for layout in report.layouts]
        asked = [max(1, int(0.4 * len(s.columns) + 0.5)) for s in report.spans]
        want = [size(o, n) for o, n in zip(orders, content, strict=True)]
        kept = [len(k) for k in report.steps[0].kept]
        assert kept == want
        assert report.tokens_kept == sum(kept)
        assert report.tokens_per_layer == [report.tokens_total] * 2 + [sum(kept)] * 4
        if max(content) > 4:
            assert any(k < a for k, a in zip(kept, asked, strict=True))
            assert any(k > a for k, a in zip(kept, asked, strict=True))


def test_counts_out_of_range_are_errors() -> None:
    @dataclass(kw_only=True)
    class Wrong(vtc.Pruner):
        name: ClassVar[str] = "wrong"
        keep: int = 3
        column: int = -1
        width: int = 5
        adaptive_count = True

        def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
            return torch.full((len(tokens.counts), self.width), self.column)

    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    plain = model(**inputs).logits
    for wrong, text in ((Wrong(), "keeps 0 of 16"), (Wrong(column=0, width=17), "keeps 17 of 16")):
        with vtc.compressed(model, wrong), pytest.raises(ValueError, match=text):
            model(**inputs)
    with vtc.compressed(model, Wrong(width=0)), pytest.raises(ValueError, match="must return"):
        model(**inputs)
    with vtc.compressed(model, Wrong(column=5, width=1)):
        model(**inputs)
        assert [k.tolist() for k in model.vtc.report.steps[0].kept] == [[5]] * 4
    assert torch.equal(model(**inputs).logits, plain)


def test_a_fixed_count_still_may_not_vary() -> None:
    class Fixed(Varying):
        adaptive_count = False

        def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
            return torch.zeros(len(tokens.counts), k - 1, dtype=torch.long)

    with vtc.compressed(tiny("llava"), Fixed()) as model, pytest.raises(ValueError, match=r"must return \[4, 6\]"):
        model(**prompt("llava", "ragged").inputs)
