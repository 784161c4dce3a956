"""``vtc train explainer``: labels, targets, a loop that learns and resumes, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_world import save_data, world

import vtc
from vtc.bundled_files import bundled_data
from vtc.commands.main import main
from vtc.eval.inspect.relevance import explain, inputs_of
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.explainer import relevance_labels as labels
from vtc.eval.train.explainer import train_job as run
from vtc.eval.train.explainer import training_loop as training
from vtc.eval.train.explainer.options import TrainSettings
from vtc.eval.train.explainer.relevance_labels import CELL, Sample, make_labels, pack, samples, unpack
from vtc.eval.train.explainer.training_loop import (
    attention_alone,
    divergence,
    figures,
    nothing,
    split,
    target,
    train,
)
from vtc.eval.train.explainer.training_scenes import draw_scene, training_scenes
from vtc.eval.train.scenes.build_evaluation_set import evaluation_scenes
from vtc.eval.vlm.loading import load_model
from vtc.pruners.explainer import RelevanceNetwork, load_network


def test_the_target_is_the_upper_half_over_its_sum() -> None:
    x = torch.tensor([[5.0, 1, 2, 3, 4], [1, 1, 1, 1, 9]])
    found = target(x)
    # floor(5 / 2) = 2 of 5 go; among equals the last
    assert torch.allclose(found, torch.tensor([[5.0, 0, 0, 3, 4], [1, 1, 0, 0, 9]]) / torch.tensor([[12.0], [11.0]]))
    assert torch.allclose(target(torch.tensor([[4.0, 3, 2, 1]])), torch.tensor([[4.0, 3, 0, 0]]) / 7)
    padded = torch.tensor([[2.0, 6, 9, 9]])
    assert torch.allclose(target(padded, torch.tensor([[True, True, False, False]])), torch.tensor([[0.0, 1, 0, 0]]))
    assert target(torch.tensor([[3.0]])).tolist() == [[1.0]]


def test_the_divergence_is_that_of_torch() -> None:
    g = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(3, 6, generator=g, requires_grad=True), target(torch.rand(3, 6, generator=g))
    want = torch.nn.functional.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1)
    assert torch.allclose(divergence(logits, wanted), want)
    padded = torch.nn.functional.pad(logits, (0, 2), value=float("-inf"))
    found = divergence(padded, torch.nn.functional.pad(wanted, (0, 2)))
    assert torch.allclose(found, want)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert divergence(wanted.clamp(min=1e-30).log(), wanted).abs().max() < 1e-5


def made_up(count: int = 24, lengths: tuple[int, ...] = (12,), seed: int = 0) -> list[Sample]:
    """Samples whose relevance is one token to the right of the attention: to be learnt from neighbours."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        n = lengths[i % len(lengths)]
        attention = torch.rand(n, generator=g) ** 4 + 1e-3
        found.append(Sample(f"q{i}", f"i{i // 2}", attention / 50, attention.roll(1) + 1e-4))
    return found


def settings(epochs: int = 8, **more: object) -> TrainSettings:
    return TrainSettings(epochs=epochs, batch_size=8, rate=3e-3, **more)  # type: ignore[arg-type]


def test_the_sides_share_no_image() -> None:
    learnt, judged = split(made_up(), 0.25)
    assert not {s.image_id for s in learnt} & {s.image_id for s in judged}
    assert len({s.image_id for s in judged}) == 3
    assert len(learnt) + len(judged) == 24
    with pytest.raises(ValueError, match="too few to train on"):
        split(made_up(2), 0.1)


@pytest.mark.parametrize("lengths", [(12,), (12, 5, 9)])
def test_training_learns_what_the_neighbours_tell(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    learnt, judged = split(made_up(lengths=lengths), 0.2)
    network, history = train(learnt, judged, settings(24), tmp_path / "a.pt")
    assert [row["epoch"] for row in history] == list(range(1, 25))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    found, before = figures(judged, network), figures(judged, attention_alone)
    assert found.kl < 0.8 * figures(judged, nothing).kl
    assert found.kl < before.kl
    assert found.overlap["0.25"] > before.overlap["0.25"]


def test_figures_are_perfect_for_the_oracle_itself() -> None:
    [sample] = made_up(1)
    found = figures([sample], lambda attention, valid: target(sample.relevance[None]).log())
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.overlap == {"0.25": 1.0, "0.11": 1.0}


@pytest.mark.parametrize("lengths", [(12,), (12, 5)])
def test_a_batch_in_parts_is_the_batch(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> tuple[float, RelevanceNetwork]:
        torch.manual_seed(0)
        network = RelevanceNetwork((4, 8))
        descent = torch.optim.SGD(network.parameters(), 0.1)  # whose step is the gradient itself
        return training._epoch(network, descent, made_up(lengths=lengths), settings(1), 0), network

    whole, one = trained()
    monkeypatch.setattr(training, "TOKENS_AT_ONCE", 30)
    parts, other = trained()
    assert parts == pytest.approx(whole, rel=1e-5)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    learnt, judged = split(made_up(), 0.2)
    whole, history = train(learnt, judged, settings(4), tmp_path / "a.pt")
    told: list[int] = []
    _, first = train(learnt, judged, settings(4), tmp_path / "b.pt", stop_after=1)
    assert len(first) == 1
    again, rows = train(learnt, judged, settings(4), tmp_path / "b.pt", lambda n, row: told.append(n))
    assert rows == history
    assert told == [1, 1, 1, 1]  # one that was there, three new ones
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other, _ = train(learnt, judged, settings(4, seed=1), tmp_path / "c.pt")
    assert not torch.equal(next(iter(other.parameters())), next(iter(whole.parameters())))


def test_scenes_are_none_of_the_evaluation_set() -> None:
    some, more = training_scenes(0, 2), training_scenes(0, 3)
    assert more.questions[: len(some.questions)] == some.questions
    assert more.fingerprint == some.fingerprint != training_scenes(1, 2).fingerprint
    assert some.image("scene-1").size == (336, 336)
    assert some.images["scene-1"] == more.images["scene-1"]
    assert {q.task for q in more.questions} <= set(load_tasks(bundled_data()).tasks)
    known = {scene.fingerprint() for scene in evaluation_scenes()}
    assert not known & {draw_scene(0, i).fingerprint() for i in range(200)}
    with pytest.raises(KeyError):
        some.images["scene-2"]


def test_vectors_survive_the_store() -> None:
    x = torch.tensor([0.0, 1e-30, 0.1, 3e8])
    assert torch.equal(unpack(pack(x)), x)


def test_labels_are_the_oracles_and_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, told = load_model(str(world()[0])), []
    tasks = load_tasks(save_data(tmp_path / "data", images=1)).subset(["color"])
    score = iter([1.0, 0.0])
    monkeypatch.setattr(labels, "metric", lambda name: type("M", (), {"score": lambda *_: next(score)}))
    with ResultStore(tmp_path / "labels.jsonl", "x") as store:
        make_labels(loaded, tasks, store, 2, told.append)
        make_labels(loaded, tasks, store, 2, told.append)  # `score` would be empty
        [found] = samples(store, tasks)  # only what was answered rightly
    assert sum(told) == 4
    assert found.question_id == tasks.questions[0].question_id
    row = labels.make_row(loaded.processor, loaded.model.config, tasks.image("i0"), tasks.questions[0])
    want = explain(loaded.model, inputs_of(row), max_new_tokens=2)  # by way of the pixels
    assert torch.allclose(found.relevance, want.relevance[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.attention, want.attention[0], rtol=1e-4, atol=1e-7)
    assert store.rows[CELL, tasks.questions[1].question_id]["right"] is False


class Killed(Exception):
    """Stands for a kill."""


def test_the_command_labels_trains_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = save_data(tmp_path / "data"), tmp_path / "out"
    # a random model answers nothing rightly
    monkeypatch.setattr(labels, "metric", lambda name: type("M", (), {"score": lambda *_: 1.0}))
    command = ["train-explainer", "--model", str(world()[0]), "--data", str(data), "--tasks", "color", "--epochs", "2",
               "--max-new-tokens", "1", "--held-out", "0.4", "--output", str(out)]  # fmt: skip
    real, calls = labels.explain, []

    def explain_some(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(labels, "explain", explain_some)
    with pytest.raises(Killed):
        main(command)
    assert len((out / "labels.jsonl").read_text().splitlines()) == 2
    for _ in range(2):  # the second time everything is there
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    questions = 6
    assert len(calls) == 1 + questions
    said = capsys.readouterr().out
    assert "100.0% of the questions answered rightly" in said
    assert list(out.glob(".*")) == []
    assert "first-layer attention" in said
    report = json.loads((out / run.REPORT).read_text())
    assert report["questions"] == report["answered_rightly"] == questions
    assert report["samples"]["trained_on"] + report["samples"]["held_out"] == questions
    assert [row["epoch"] for row in report["history"]] == [1, 2]
    assert report["command"].startswith("vtc train-explainer --model")
    assert {*report["held_out"]} == {"network", "first-layer attention", "uniform"}
    _, about = load_network(out / run.WEIGHTS)
    assert (about["heads"], about["width"], about["samples"]) == ("4", "32", str(report["samples"]["trained_on"]))
    with pytest.raises(SystemExit) as stop:
        main(["ask", "--model", str(world()[0]), "--image", str(picture(tmp_path, data)), "--question", "what?",
              "--max-new-tokens", "1", "--keep", "5",
              "--pruner", f"explainer(weights='{out / run.WEIGHTS}')"])  # fmt: skip
    assert stop.value.code == 0
    assert "5 of 16 visual tokens" in capsys.readouterr().out


def picture(folder: Path, data: Path) -> Path:
    """The first image of a set as a file."""
    path = folder / "picture.png"
    load_tasks(data).image("i0").save(path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs 0 is out of range"),
        (["--limit", "0"], "--limit 0 is out of range"),
        (["--rate", "0"], "--rate 0.0 is out of range"),
        (["--held-out", "1"], "--held-out 1.0 is out of range"),
        (["--model", "some/model"], "--model needs questions"),
        (["--data", "no-such-folder"], "--data: no such folder"),
        (["--tasks", "color"], "the bundled evaluation set is what methods are measured on"),
        (["--data", str(bundled_data())], "the bundled evaluation set is what methods are measured on"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train-explainer", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_shipped_networks_evidence_belongs_to_it() -> None:
    from vtc.pruners.explainer import SHIPPED

    evidence = json.loads(SHIPPED.with_suffix(".json").read_text())
    _, about = load_network(SHIPPED)
    assert str(evidence["samples"]["trained_on"]) == about["samples"]
    assert evidence["configuration"]["model"] == about["model_identity"] == load_model(None).identity
    assert evidence["held_out"]["network"]["kl"] < evidence["held_out"]["uniform"]["kl"]
    # and it is what the shipped file still does: weights lose little in half precision
    assert evidence["history"][-1]["epoch"] == evidence["configuration"]["epochs"]
    assert RelevanceNetwork().channels == load_network(SHIPPED)[0].channels
    assert "explainer" in vtc.list_pruners()
