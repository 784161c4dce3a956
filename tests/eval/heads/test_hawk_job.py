"""``vtc hawk``: what is lost without a head, weights by hand, and a file that the method reads."""

from __future__ import annotations

import json

import pytest
import torch
from zoo import prompt, tiny

import vtc
from vtc.commands.main import main
from vtc.eval.heads.lost_without import heads_of, weights_of, without_head
from vtc.pruners.hawk import read_heads

pytestmark = pytest.mark.usefixtures("no_grad")


def test_weights_by_hand():
    """Sets lose (1, 3, 0) and (-2, 0, -1) without the heads; the third tells nothing."""
    drops = torch.tensor([[1.0, 3.0, 0.0], [-2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    expected = [(1 / 4 + 0) / 2, (3 / 4 + 2 / 3) / 2, (0 + 1 / 3) / 2]
    assert weights_of(drops).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="no head changes any answer"):
        weights_of(drops[2:])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_silent_head_is_one_whose_output_weights_are_zero(family):
    inputs = prompt(family, "one").inputs
    model = tiny(family)
    plain = model(**inputs).logits
    lm = getattr(model.base_model, "language_model", None) or model.base_model.text_model
    out, width = lm.layers[0].self_attn.o_proj, lm.layers[0].self_attn.head_dim
    before = out.weight.clone()
    for head in range(heads_of(model)):
        with without_head(model, head):
            found = model(**inputs).logits
        out.weight[:, head * width : (head + 1) * width] = 0
        expected = model(**inputs).logits
        out.weight.copy_(before)
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.equal(found, plain)
    with without_head(model, None):
        assert torch.equal(model(**inputs).logits, plain)


def test_the_command_writes_what_hawk_reads(tmp_path, capsys):
    file = tmp_path / "heads.json"
    command = ["hawk", "--limit", "1", "--tasks", "color,count", "--output", str(file), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    weights = read_heads(str(file))
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    about = json.loads(file.read_text())
    assert len(about["lost"]) == len(about["questions"])
    assert all(len(row) == len(weights) for row in about["lost"].values())
    assert "hawk(weights=" in capsys.readouterr().out.replace("\n", "")
    assert vtc.parse("hawk", keep=4, weights=str(file))[0].heads(len(weights)) == weights
    with pytest.raises(SystemExit):
        main(command)
    assert "is there already" in capsys.readouterr().err
