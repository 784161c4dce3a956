"""``vtc horizon``: continuing from a layer equals pruning there, and the job resumes, draws and refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from bench_world import TOKENS, world
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from zoo import prompt, tiny

import vtc
from vtc.commands.main import main
from vtc.eval.inspect import horizon_job as horizon_run
from vtc.eval.inspect.horizon import (
    answer_token,
    horizon_layer,
    layer_means,
    layout_windows,
    measure,
    withdrawal_layer,
)
from vtc.eval.inspect.replay_layers import Replay
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.prompts import TOKEN_INPUTS, Row
from vtc.pruners.layout import Grid, Layout

FAMILIES = ("llava", "llava_sliding", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "internvl")


def row_of(family: str) -> Row:
    inputs = dict(prompt(family, "one").inputs)
    ids = inputs.pop("input_ids")[0]
    tokens = {k: inputs.pop(k)[0] for k in TOKEN_INPUTS if k in inputs}
    return Row(Question("q", "t", "i", "what?", "yes"), ids, tokens, inputs, 0, 0)


@dataclass(kw_only=True)
class Given(vtc.Pruner):
    """Keeps given tokens of the first span and the first one of every other."""

    name: ClassVar[str] = "given"
    layer: int = 2
    ids: tuple[int, ...] = ()
    stage = "decoder"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        return torch.tensor(self.ids)[None].expand(len(tokens.counts), -1)


def pruned_logits(family: str, pruner: Any) -> Tensor:
    model = tiny(family)
    with torch.no_grad(), vtc.compressed(model, pruner):
        return model(**prompt(family, "one").inputs, use_cache=False).logits[0, -1]


@pytest.mark.parametrize(
    ("family", "impl"), [*((f, "sdpa") for f in FAMILIES), ("llava", "eager"), ("gemma3", "eager")]
)
def test_continuing_from_a_layer_is_pruning_there(family: str, impl: str) -> None:
    replay = Replay(tiny(family, impl), row_of(family))
    assert replay.depth == 6
    nothing = torch.empty(0, dtype=torch.long)
    for layer in (replay.first, 5):
        blind = replay.keeping(layer, [nothing])[0]
        assert torch.allclose(blind, pruned_logits(family, f"vtw(layer={layer})"), atol=1e-4)
    windows = layout_windows(replay.layouts[0], 2)
    if len(replay.columns) == 1:
        some = [w for w in windows if len(w) == len(windows[0])][:3]
        kept = [replay.columns[0][w] for w in some]
        found = replay.keeping(4, [*kept, nothing], batch_size=2)
        for line, ids in zip(found, some, strict=False):
            pruner = Given(layer=4, ids=tuple(_content(replay.layouts[0], ids)), keep=len(ids))
            assert torch.allclose(line, pruned_logits(family, pruner), atol=1e-4)
        assert not torch.allclose(found[0], found[-1], atol=1e-3)


def _content(layout: Layout, ids: list[int]) -> list[int]:
    """Columns among the candidates, which leave out newline tokens."""
    content = np.flatnonzero(layout.array[:, 2] >= 0).tolist()
    return [content.index(i) for i in ids]


def test_a_model_that_does_more_than_its_layers_is_refused() -> None:
    model = tiny("llava")

    def scale(_: Any, args: Any, out: Any) -> Any:
        out.logits = 2 * out.logits
        return out

    model.register_forward_hook(scale)
    with pytest.raises(NotImplementedError, match="can't be run by themselves"):
        Replay(model, row_of("llava"))


grids = st.lists(
    st.builds(Grid, st.integers(1, 7), st.integers(1, 7), newline=st.sampled_from(["none", "row", "end"])),
    min_size=1,
    max_size=3,
)


@given(grids, st.integers(1, 4))
def test_windows_cover_the_content_once_and_no_newline(made: list[Grid], size: int) -> None:
    layout = Layout(tuple(made))
    windows = layout_windows(layout, size)
    every = sorted(i for w in windows for i in w)
    assert every == np.flatnonzero(layout.array[:, 2] >= 0).tolist()
    where = layout.array
    for window in windows:
        assert len(set(where[window, 0])) == 1
        assert np.ptp(where[window, 1]) < size
        assert np.ptp(where[window, 2]) < size


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_the_horizon_is_the_first_layer_of_the_quiet_end(values: list[float], threshold: float) -> None:
    layers = list(range(1, len(values) + 1))
    found = horizon_layer(layers, values, threshold)
    quiet = [i for i in layers if all(v < threshold for v in values[i - 1 :])]
    assert found == (min(quiet) if quiet else None)
    withdrawn = withdrawal_layer(layers, values, threshold)
    assert withdrawn == next((i for i in layers if values[i - 1] <= threshold), None)


def test_means_over_questions() -> None:
    said = [
        ([[0.1, -0.3], [0.0, 0.0]], [0.2, 0.4], [True, False], [1, 0]),
        ([[0.5, 0.1], [0.2, -0.1]], [0.4, 0.4], [True, True], [0, 0]),
    ]
    rows = [{"layers": [1, 2], "info": i, "p_text": p, "right_text": r, "kl": k} for i, p, r, k in said]
    one, two = layer_means(rows)
    assert (one.layer, one.accuracy, one.kl) == (1, 1.0, 0.5)
    assert one.mean_info == pytest.approx(0.25)
    assert one.best_info == pytest.approx(0.4)
    assert one.p_text == pytest.approx(0.3)
    assert (two.best_info, two.accuracy) == (pytest.approx(0.1), 0.5)
    assert layer_means([{**rows[0], "info": []}])[0].mean_info is None


def test_the_answers_token_is_the_spelling_the_model_prefers() -> None:
    known = {"yes": 1, " yes": 2, "Yes": 3, " Yes": 4}
    processor = SimpleNamespace(tokenizer=lambda text, add_special_tokens: SimpleNamespace(input_ids=[known[text], 9]))
    logits = torch.zeros(10)
    assert answer_token(processor, "yes", logits) == 1
    logits[3] = 1
    assert answer_token(processor, "yes", logits) == 3
    with pytest.raises(ValueError, match="has no answer"):
        answer_token(processor, "", logits)


def test_measure_agrees_with_pruned_models() -> None:
    from vtc.eval.tasks.reading.load import load_tasks
    from vtc.eval.vlm.loading import load_model
    from vtc.eval.vlm.prompts import make_row

    loaded = load_model(str(world()[0]))
    tasks = load_tasks(world()[1])
    question = tasks.questions[0]
    row = make_row(loaded.processor, loaded.model.config, tasks.image(question.image_id), question)
    found = measure(loaded, row, [1, 3], 2)
    assert [len(x) for x in found["info"]] == [TOKENS // 4] * 2
    inputs = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}, **row.vision}
    with torch.no_grad():
        full = loaded.model(**inputs).logits[0, -1].log_softmax(-1)
        answer = answer_token(loaded.processor, question.answer, full)
        assert found["p_full"] == pytest.approx(float(full[answer].exp()), abs=2e-6)
        for i, layer in enumerate((1, 3)):
            with vtc.compressed(loaded.model, f"vtw(layer={layer})"):
                blind = loaded.model(**inputs).logits[0, -1].log_softmax(-1)
            with vtc.compressed(loaded.model, Given(layer=layer, ids=(2, 3, 6, 7), keep=4)):
                second = loaded.model(**inputs).logits[0, -1].softmax(-1)
            assert found["p_text"][i] == pytest.approx(float(blind[answer].exp()), abs=2e-6)
            assert found["info"][i][1] == pytest.approx(float(second[answer] - blind[answer].exp()), abs=3e-6)
            divergence = torch.nn.functional.kl_div(blind, full, log_target=True, reduction="sum")
            assert found["kl"][i] == pytest.approx(float(divergence), abs=1e-5)
    with pytest.raises(ValueError, match="layer 0 can't be looked at"):
        measure(loaded, row, [0], 2)


# ---------------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["horizon", "--model", str(world()[0]), "--data", str(world()[1]), *map(str, args)])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_its_files_and_a_verdict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--limit", 1, "--threshold", 0.9, "--output", "out")
    assert (code, err) == (0, "")
    assert "Information horizon: layer 1 of 4" in out
    assert "3 questions" in out
    report = json.loads((place / "out" / "horizon.json").read_text())
    assert report["horizon"] == 1
    assert [m["layer"] for m in report["layers"]] == [1, 2, 3]
    assert all(0 <= m["mean_info"] <= m["best_info"] <= 1 for m in report["layers"])
    with Image.open(place / "out" / "horizon.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("L").getcolors(1 << 16) or range(99)) > 20
    lines = (place / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["cell"] == "horizon(window=2)"


def test_the_same_command_goes_on_where_it_was_stopped(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = horizon_run.measure, []

    def counted(*args: Any) -> Any:
        if len(seen) == 2:
            seen.append("stopped")
            raise KeyboardInterrupt
        seen.append(args[1].question.question_id)
        return real(*args)

    monkeypatch.setattr(horizon_run, "measure", counted)
    code, _, err = run(capsys, "--limit", 2, "--output", "out")
    assert code == 130
    assert "goes on from there" in err
    assert len((place / "out" / "results.jsonl").read_text().splitlines()) == 2
    (place / "out" / "results.jsonl").open("a").write('{"torn')
    code, out, _ = run(capsys, "--limit", 2, "--output", "out")
    assert code == 0
    assert len(seen) == len(set(seen)) == 1 + 6  # six questions, each once, and the stop
    code, again, _ = run(capsys, "--limit", 2, "--output", "out")
    assert code == 0
    assert len(seen) == 7
    rows = [line for line in out.splitlines() if "unpruned" in line]
    assert rows == [line for line in again.splitlines() if "unpruned" in line]


@pytest.mark.parametrize(("eta", "verdict"), [(1e6, "VTW: withdraw at layer 1 of 4"), (1e-12, "No layer up to 3")])
def test_the_search_for_vtws_layer(place: Path, capsys: pytest.CaptureFixture[str], eta: float, verdict: str) -> None:
    code, out, _ = run(capsys, "--limit", 1, "--search", "vtw", "--eta", eta)
    assert code == 0
    assert verdict in out
    (folder,) = (place / "vtc-horizon").iterdir()
    report = json.loads((folder / "horizon.json").read_text())
    assert report["search"] == "vtw"
    assert all(m["mean_info"] is None for m in report["layers"])


BAD = {
    "--search 'fastv' is unknown": ("--search", "fastv"),
    "--limit 0": ("--limit", "0"),
    "--window 0": ("--window", "0"),
    "--threshold 0.0": ("--threshold", "0"),
    "--eta -1.0": ("--search", "vtw", "--eta", "-1"),
    "--start 4 is out of range: the model has 4 decoder layers": ("--start", "4"),
    "unknown task 'colour'": ("--tasks", "colour"),
    "no such folder: nowhere": ("--data", "nowhere"),
    "no such model": ("--model", "nowhere"),
    "--output: file is a file": ("--output", "file/out"),
}


@pytest.fixture
def _file(place: Path) -> None:
    (place / "file").write_text("")


@pytest.mark.usefixtures("_file")
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    code, _, err = run(capsys, *BAD[message])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
