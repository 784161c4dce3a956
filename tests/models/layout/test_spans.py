"""Where the items of a batch stand: their own placeholders, or an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtc.models.layout.items_behind_placeholders import Fed
from vtc.models.layout.spans import make_batch


def fed(*lengths: int) -> Fed:
    record: Any = SimpleNamespace(lengths=list(lengths))
    return Fed(record, list(lengths))


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "i" for c in row] for row in rows])


@pytest.mark.parametrize("rows", [("..ii..",), ("..ii..", "......")])
def test_items_that_do_not_match_their_placeholders_are_an_error(rows: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"1 items, 3 tokens\) do not match the placeholders of the batch \(\[2"):
        make_batch({"image": mask(*rows)}, {"image": fed(3)}, None, 6)


def test_items_behind_the_placeholders_of_another_modality() -> None:
    masks = {"image": mask("..iii."), "video": mask("......")}
    batch, _ = make_batch(masks, {"video": fed(1, 2)}, None, 6)
    assert [(s.modality, s.item) for s in batch.spans] == [("video", 0), ("video", 1)]
    assert batch.columns.tolist() == [[2, 0], [3, 4]]
    with pytest.raises(ValueError, match="do not match"):  # not all of them, nor where both have their own
        make_batch(masks, {"video": fed(1, 1)}, None, 6)
    with pytest.raises(ValueError, match="do not match"):
        make_batch({**masks, "video": mask("i.....")}, {"video": fed(3)}, None, 6)
