"""The digits: who is held out, how they are drawn, what training leaves behind, and what is shipped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vtc.bundled_files import bundled_digits_path
from vtc.eval.classify.classifier import load_classifier

pytest.importorskip("sklearn")
from vtc.eval.classify import digit_pictures as digits
from vtc.eval.classify import train_digits as train


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=int)


def test_held_out_digits_are_in_no_training_picture():
    learnt, held_out = digits.load_split()
    assert len(held_out.labels) == digits.HELD_OUT == 450
    assert len(learnt.labels) + len(held_out.labels) == digits.TOTAL
    assert len(learnt.labels) == 1797 - 450
    assert not set(learnt.where) & set(held_out.where)
    assert torch.bincount(held_out.labels, minlength=10).min() > 30
    again = digits.load_split()[1]
    assert (again.where == held_out.where).all()
    shipped = pq.read_table(bundled_digits_path() / "test.parquet").to_pydict()
    assert shipped["image_id"] == [f"digit-{i}" for i in held_out.where]
    assert shipped["label"] == [str(int(x)) for x in held_out.labels]


def test_a_digit_of_a_place_and_a_size():
    """A full square is drawn as wide as its size says and where it says."""
    square = torch.ones(1, 8, 8)
    for size, x, y in ((24.0, 12.0, 12.0), (36.0, 24.0, 27.0)):
        drawn = digits._place(square, *(torch.tensor([v]) for v in (size, x, y, 0.0)))[0]
        rows, cols = (drawn.sum(d) for d in (1, 0))
        inside = torch.arange(digits.SIDE) + 0.5
        assert float((rows * inside).sum() / rows.sum()) == pytest.approx(y, abs=0.1)
        assert float((cols * inside).sum() / cols.sum()) == pytest.approx(x, abs=0.1)
        assert float(drawn.sum()) ** 0.5 == pytest.approx(size, rel=0.1)


def test_the_shipped_pictures_are_drawn_the_same_again():
    drawn = train.draw_test(digits.load_split()[1])
    shipped = pq.read_table(bundled_digits_path() / "test.parquet").to_pydict()["image"]
    for picture, png in zip(drawn, shipped, strict=True):
        assert np.abs(picture.numpy().astype(int) - pixels(png)).mean() < 0.5  # another machine may round otherwise


def test_training_saves_what_vtc_bench_reads(tmp_path: Path):
    """Two steps; the same command gives the same model."""
    found = train.train(tmp_path / "a", steps=2, batch=4)
    train.train(tmp_path / "b", steps=2, batch=4)
    assert {"config.json", "model.safetensors", "test.parquet", "training.json", "README.md"} == {
        p.name for p in (tmp_path / "a").iterdir()
    }
    assert json.loads((tmp_path / "a" / "training.json").read_text()) == found
    one, two = (load_classifier(f"timm:{tmp_path / name}", "cpu") for name in "ab")
    assert one.identity == two.identity
    assert (tmp_path / "a" / "config.json").read_text() == (bundled_digits_path() / "config.json").read_text()
    pictures, labels = train.draw_test(held := digits.load_split()[1]), held.labels
    assert train.accuracy(one.model, pictures, labels) == pytest.approx(found["held_out_accuracy"], abs=1e-4)
    card, shipped = (bundled_digits_path() / name for name in ("README.md", "training.json"))
    figures = json.loads(shipped.read_text())
    assert figures["held_out_accuracy"] > 0.95
    assert f"**{100 * figures['held_out_accuracy']:.1f}%** of 450" in card.read_text()
    sizes = sum(p.stat().st_size for p in bundled_digits_path().iterdir())
    assert sizes < 2 << 20
