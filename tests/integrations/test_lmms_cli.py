"""``python -m lmms_eval --model vtc``: real runs of the command line, offline, on local folders."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from bench_world import TOKENS, png, save_model
from filelock import FileLock
from lmms_world import require_lmms_eval, result, run_lmms_eval, samples, token_files, write_pope
from rich.console import Console

from vtc.bundled_files import bundled_data, bundled_model_path
from vtc.eval.bench import BenchOptions, run_bench
from vtc.eval.tasks.metrics import metric, official
from vtc.eval.tasks.reading.load import load_tasks
from vtc.integrations.lmms_eval import load_lmms_task

require_lmms_eval()

PIPELINE = "random(keep=0.05,seed=5) + random(layer=2,keep=0.02,seed=5)"
FIGURES = {"pope_accuracy": "accuracy", "pope_f1_score": "f1", "pope_precision": "precision", "pope_recall": "recall"}


def yes_no_questions(count: int) -> list[tuple[bytes, str, str]]:
    """Questions of the bundled set with yes and no in turn, several about one image."""
    tasks = load_tasks(bundled_data())
    found = {a: [q for q in tasks.questions if q.answer == a] for a in ("yes", "no")}
    chosen = [found[a][i] for i in range(count // 2) for a in ("yes", "no")]
    return [(tasks.images[q.image_id], q.question, q.answer) for q in chosen]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of this, made by the first of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lmms"
    with FileLock(f"{root}.lock"):
        if not (root / "printed").exists():
            make_world(root)
            (root / "printed").write_text(run_all(root))
    return root


@pytest.fixture(scope="module")
def runs(world: Path) -> str:
    """What the process printed that did all the runs of ``run_all``."""
    return (world / "printed").read_text()


def make_world(root: Path) -> None:
    """Tasks on the bundled set's pictures and on noise, and a tiny random model."""
    write_pope(root / "tasks", yes_no_questions(6))
    noise = [(png(i), "is there a red square in the image?", ("yes", "no")[i % 2]) for i in range(5)]
    write_pope(root / "tasks", noise, "pope_noise")
    save_model(root / "tiny")


def run_all(world: Path) -> str:
    """One process for all runs, as its start takes longer than they; their results are in folders of their names."""
    bundled, tiny = (f"pretrained={path},dtype=float32" for path in (bundled_model_path(), world / "tiny"))
    cells: dict[str, tuple[str, str, str]] = {
        "stock": ("llava_hf", f"{bundled},device=cpu,device_map=cpu", "pope_local"),
        "none": ("vtc", f"base=llava_hf,method=none,{bundled}", "pope_local"),
        "full": ("vtc", f"base=llava_hf,method=dart,keep=1.0,{bundled}", "pope_local"),
        "dart": ("vtc", f"base=llava_hf,method=dart,keep=0.25,{bundled}", "pope_local"),
        "wrong": ("vtc", f"base=llava_hf,method=dartt,keep=0.25,{bundled}", "pope_local"),
        "pipeline": ("vtc", f'base=llava_hf,pruner="{PIPELINE}",{bundled}', "pope_local"),
        "cached_stock": ("llava_hf", f"{tiny},device=cpu,device_map=cpu", "pope_noise"),
        "cached_none": ("vtc", f"base=llava_hf,method=none,{tiny}", "pope_noise"),
        "cached_two": ("vtc", f"base=llava_hf,method=uniform,keep=2,{tiny}", "pope_noise"),
        "cached_again": ("vtc", f"base=llava_hf,method=uniform,keep=2,{tiny}", "pope_noise"),
        "single": ("vtc", f"base=llava_hf,method=uniform,keep=4,{tiny}", "pope_noise"),
    }
    listed = [
        {
            "model": model, "model_args": arguments, "tasks": task, "include_path": str(world / "tasks"),
            "batch_size": 1, "output_path": str(world / name), "log_samples": True, "verbosity": "INFO",
            **({"use_cache": str(world / "cache")} if name.startswith("cached") else {}),
        }
        for name, (model, arguments, task) in cells.items()
    ]  # fmt: skip
    path = world / "runs.yaml"
    path.write_text(yaml.safe_dump(listed))
    return run_lmms_eval("--config", str(path))


def test_the_entry_point_is_installed() -> None:
    (point,) = entry_points(group="lmms_eval.models", name="vtc")
    (manifest,) = point.load()()
    assert manifest.model_id == "vtc"
    from lmms_eval import models

    assert models.get_model("vtc").__name__ == "VtcChat"
    assert models.get_model("vtc", force_simple=True).__name__ == "VtcSimple"


def test_unpruned_it_is_the_stock_backend(world: Path) -> None:
    stock, scores = samples(world / "stock"), result(world / "stock")["results"]["pope_local"]
    assert scores["pope_accuracy,none"] > 0.5
    for name in ("none", "full"):  # without a method, and with one that keeps everything
        ours = samples(world / name)
        assert [s["filtered_resps"] for s in ours] == [s["filtered_resps"] for s in stock]
        assert [s["input"] for s in ours] == [s["input"] for s in stock]
        assert result(world / name)["results"]["pope_local"] == scores
    (told,) = token_files(world / "full")
    assert (told["method"].partition("(")[0], told["kept_share"]) == ("dart", 1.0)


def test_scores_agree_between_lmms_eval_our_sweep_and_our_pope_metric(world: Path) -> None:
    """``vtc bench`` on the task: prompts and answers are those of lmms-eval's run, and three metrics give one score."""
    output = world / "bench"
    run_bench(
        BenchOptions(
            pruners=["dart"], keeps=[0.25], tasks=["lmms:pope_local"], include_path=world / "tasks", output=output,
            random=False, timing=0, device="cpu", dtype="float32",
        ),
        Console(quiet=True),
    )  # fmt: skip
    tasks = load_lmms_task("pope_local", str(world / "tasks"))
    lines = [json.loads(line) for path in output.glob("results*.jsonl") for line in path.read_text().splitlines()]
    figures = {cell["method"]: cell["official"] for cell in json.loads((output / "summary.json").read_text())["cells"]}
    for name, method in (("none", "unpruned"), ("dart", "dart")):
        rows = {row["question_id"]: row for row in lines if row["method"] == method}
        logged, theirs = samples(world / name), result(world / name)["results"]["pope_local"]
        asked = [rows[q.question_id] for q in tasks.questions]
        assert [row["question"] for row in asked] == [sample["input"] for sample in logged]
        assert [row["prediction"] for row in asked] == [sample["filtered_resps"].strip() for sample in logged]
        assert [row["score"] for row in asked] == [sample["pope_accuracy"]["score"] for sample in logged]
        own = metric("pope")
        again = {
            q.question_id: {"score": own.score(q, row["prediction"]), "parsed": own.parse(q, row["prediction"])}
            for q, row in zip(tasks.questions, asked, strict=True)
        }
        ours = official([replace(q, metric="pope") for q in tasks.questions], again)["pope_local"]
        for figure, same in FIGURES.items():
            assert figures[method]["pope_local"][figure] == pytest.approx(theirs[f"{figure},none"])
            assert ours[same] == pytest.approx(theirs[f"{figure},none"])


def test_token_savings_lie_beside_the_results(world: Path) -> None:
    count = len(samples(world / "dart"))
    (told,) = token_files(world / "dart")
    assert told["method"].startswith("dart(keep=0.25")
    assert told["requests"] == count == 6
    assert (told["visual_tokens"], told["visual_tokens_kept"], told["kept_share"]) == (576 * count, 144 * count, 0.25)
    assert told["failed"] == 0
    assert sorted(r["doc_id"] for r in told["per_request"]) == list(range(count))
    for sample, request in zip(
        samples(world / "dart"), sorted(told["per_request"], key=lambda r: r["doc_id"]), strict=True
    ):
        (counts,) = sample["token_counts"]
        assert counts["input_tokens"] == request["prompt_tokens"] > 576
        assert (counts["visual_tokens"], counts["visual_tokens_kept"]) == (576, 144)
        assert (
            counts["visual_tokens_mean_per_layer"] == request["visual_tokens_mean_per_layer"] == (2 * 576 + 6 * 144) / 8
        )
    assert result(world / "stock")["efficiency"]["overall"]["total_input_tokens"] == 0
    assert result(world / "dart")["efficiency"]["overall"]["total_input_tokens"] == told["prompt_tokens"]
    (plain,) = token_files(world / "none")
    assert plain["method"] == "unpruned"
    assert plain["visual_tokens"] == plain["visual_tokens_kept"] == 576 * count
    names = {path.name.split("_vtc")[0][:9] for path in (world / "dart").rglob("*_vtc_tokens.json")}
    assert names == {path.name[:9] for path in (world / "dart").rglob("*_results.json")}


def test_a_pipeline_with_commas_in_the_model_arguments(world: Path) -> None:
    (told,) = token_files(world / "pipeline")
    assert told["method"] == "random(keep=0.05, seed=5) + random(keep=0.02, seed=5, layer=2)"
    assert {(r["visual_tokens_kept"], r["visual_tokens_mean_per_layer"]) for r in told["per_request"]} == {
        (12, (2 * 29 + 6 * 12) / 8)
    }
    assert PIPELINE in result(world / "pipeline")["config"]["model_args"]


def test_a_wrong_run_of_several_says_why_and_the_next_goes_on(world: Path, runs: str) -> None:
    assert "unknown pruner 'dartt'. Did you mean 'dart'?" in runs
    assert not list(world.glob("wrong/**/*_results.json"))


def test_the_response_cache_keeps_compressed_and_unpruned_answers_apart(world: Path) -> None:
    answers = {
        name: [s["filtered_resps"] for s in samples(world / f"cached_{name}")]
        for name in ("stock", "none", "two", "again")
    }
    assert all(answers["stock"])
    assert answers["none"] == answers["stock"]
    assert answers["two"] != answers["stock"]
    assert answers["again"] == answers["two"]
    (told,) = token_files(world / "cached_two")  # its own requests, none from the cache of the runs before
    assert (told["requests"], told["visual_tokens_kept"]) == (5, 5 * 2)
    assert token_files(world / "cached_again") == []  # all answers came from the cache


def arguments(world: Path, name: str) -> list[str]:
    """The run called "single", as options of the command line."""
    model = f"base=llava_hf,method=uniform,keep=4,pretrained={world / 'tiny'},dtype=float32"
    task = ["--tasks", "pope_noise", "--include_path", str(world / "tasks"), "--batch_size", "1"]
    return ["--model", "vtc", "--model_args", model, *task, "--output_path", str(world / name), "--log_samples"]


@pytest.mark.share(2)
@pytest.mark.skipif(os.name == "nt", reason="torchrun's gloo")
def test_two_processes_share_the_samples(world: Path) -> None:
    run_lmms_eval(*arguments(world, "two"), processes=2)
    one, two = samples(world / "single"), samples(world / "two")
    assert [s["filtered_resps"] for s in two] == [s["filtered_resps"] for s in one]
    assert result(world / "two")["results"]["pope_noise"] == result(world / "single")["results"]["pope_noise"]
    parts = token_files(world / "two")
    assert [(part["rank"], part["world_size"]) for part in parts] == [(0, 2), (1, 2)]
    shares = [{r["doc_id"] for r in part["per_request"]} for part in parts]
    assert shares == [{0, 2, 4}, {1, 3}]
    assert [part["requests"] for part in parts] == [3, 2]  # not the one that keeps both processes in step
    assert sum(part["visual_tokens"] for part in parts) == 5 * TOKENS


@pytest.mark.share(3)
def test_accelerate_launches_it(world: Path) -> None:
    run_lmms_eval(*arguments(world, "launched"), accelerate=True)
    assert [s["filtered_resps"] for s in samples(world / "launched")] == [
        s["filtered_resps"] for s in samples(world / "single")
    ]
    (told,) = token_files(world / "launched")
    assert (told["world_size"], told["requests"], told["visual_tokens_kept"]) == (1, 5, 5 * 4)
