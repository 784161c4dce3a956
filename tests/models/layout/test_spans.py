"""Where the items of a batch stand: their own placeholders, or an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtc.models.layout.items_behind_placeholders import Fed
from vtc.models.layout.spans import make_batch
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.pruners.layout import Layout
from vtc.pruners.signals import EncoderKeys


def fed(*lengths: int) -> Fed:
    record: Any = SimpleNamespace(lengths=list(lengths))
    return Fed(record, list(lengths))


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "i" for c in row] for row in rows])


@pytest.mark.parametrize("rows", [("..ii..",), ("..ii..", "......")])
def test_items_that_do_not_match_their_placeholders_are_an_error(rows: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"1 items, 3 tokens\) do not match the placeholders of the batch \(\[2"):
        make_batch({"image": mask(*rows)}, {"image": fed(3)}, None, 6)


def test_one_item_that_fills_several_rows_is_cut_where_they_end() -> None:
    """Fuyu's patches of all pictures."""
    record = VisionRecord("image", [5], lambda: [Layout.line(5)])
    masks = {"image": mask("..ii", "....", "iii.")}
    batch, _ = make_batch(masks, {"image": Fed(record, [5])}, None, 4)
    assert [(s.sample, s.item) for s in batch.spans] == [(0, 0), (2, 1)]
    assert batch.columns.tolist() == [[2, 3, 0], [0, 1, 2]]
    assert batch.layouts() == [Layout.line(2), Layout.line(3)]
    told = VisionRecord("image", [5], lambda: [Layout.line(5)], {EncoderKeys(): [torch.zeros(5, 1, 2)]})
    with pytest.raises(ValueError, match="do not match"):  # an item of a tower is one picture
        make_batch(masks, {"image": Fed(told, [5])}, None, 4)


def test_items_behind_the_placeholders_of_another_modality() -> None:
    masks = {"image": mask("..iii."), "video": mask("......")}
    batch, _ = make_batch(masks, {"video": fed(1, 2)}, None, 6)
    assert [(s.modality, s.item) for s in batch.spans] == [("video", 0), ("video", 1)]
    assert batch.columns.tolist() == [[2, 0], [3, 4]]
    with pytest.raises(ValueError, match="do not match"):  # not all of them, nor where both have their own
        make_batch(masks, {"video": fed(1, 1)}, None, 6)
    with pytest.raises(ValueError, match="do not match"):
        make_batch({**masks, "video": mask("i.....")}, {"video": fed(3)}, None, 6)
