"""lmms-eval's own functions for the prompts and scores of the ready definitions, on the rows of ``public_data``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from public_data import PUBLIC, write, write_frames

from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.read_benchmarks import load_benchmarks

YES_NO = ["yes", "no", "Yes", "NO", " no ", "", "maybe"]
MME_STYLE = [*YES_NO, "Yes, there is", "no way", "Not sure", "y", "N", "Yes.", "unknown", "I see no dog", "...", "nope"]
LETTERS = [
    "A", "B", "C", "D", "(B)", "B.", "B. cat", "(B) cat", "B) cat", "B: cat", "The answer is (B).", "The answer is C",
    "answer: D", "The correct answer is B: the cat", "I think it is B.", "Option D", "**B**", "B\n\nIt is a cat",
    "答案是B。", "选C", "（B）", "", "   ", "not sure", "The best answer is:\nD", "It's D", "Yes", "A.", "\\boxed{B}",
]  # fmt: skip
STRICT_LETTERS = [*LETTERS, "b", "b.", "Because", "A cat", "E. none", " C. car ", "dog", "ab"]
WORDS = ["no", "No.", "woman", "Woman!", "t-shirt", "tshirt", "a woman", "", "the no", "é", "yes, no"]
NUMBERS = [
    "14", "14.0", "13.4", "13.2", "14%", "57.5%", "0.575", "57.5", "0.6", "Yes", "yes", "no", "", "1,400", "14 kg", "0",
    "-14", "1e1", "nan", "%",
]  # fmt: skip
TEXTS = [
    "nokia", "Nokia.", "nokia's", "the nokia", "10:30", "10.30", "half-past", "down", "At table", "at the table", "2",
    "two", "2.", "two,", "soda", "Coke!", "unanswerable", "yes", "no", "", "dont", "1,000", "a",
]  # fmt: skip
OCR = [
    "CENTRE",
    "the centre is",
    "cent\nre",
    "ten",
    "It is 10.",
    "１０",
    "\\frac{X}{2}",
    "\\frac { x } { 2 }",
    "",
    "CENTER",
]
DATES = ["1/8/93", "1/8/1993", "Jan 8 1993", "jan  8 1993", "The Great Atlantic", "great atlantic", "atlantic", "", "x"]
ROADS = ["B", "B.", "The answer is B.", "A", "2", "2.", " 2 ", "two", "", "(B) sign"]


def utils(name: str) -> Any:
    return importlib.import_module(f"lmms_eval.tasks.{name}")


@lru_cache(maxsize=32)
def prompt_options(path: str) -> dict[str, Any]:
    """The prompt arguments of a task's YAML file, whose function tags PyYAML does not know."""
    import lmms_eval
    import yaml

    text = (Path(lmms_eval.__file__).parent / "tasks" / path).read_text()
    lines = [line for line in text.splitlines() if "!function" not in line]
    return yaml.safe_load("\n".join(lines))["lmms_eval_specific_kwargs"]["default"]


def first_score(found: dict[str, Any]) -> float:
    value = next(iter(found.values()))
    return float(value["score"] if isinstance(value, dict) else value)


def ai2d(doc: dict[str, Any], predictions: list[str]) -> float:
    """AI2D's filter and lmms-eval's exact match, as its YAML file joins them."""
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    u = utils("ai2d.utils")
    filtered = u.MultiChoiceRegexFilter("([A-Z])\\.", 0, "[invalid]", True, True).apply([predictions], [doc])
    target = u.ai2d_doc_to_target(doc, "mcq")
    return _exact(exact_match_hf_evaluate, filtered[0], target)


def _exact(evaluate: Callable[..., Any], prediction: str, target: str) -> float:
    found = evaluate(predictions=[prediction], references=[target], ignore_case=True, ignore_punctuation=True)
    return float(found["exact_match"])


def gqa(doc: dict[str, Any], predictions: list[str]) -> float:
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    return _exact(exact_match_hf_evaluate, predictions[0], doc["answer"])


def docvqa(doc: dict[str, Any], predictions: list[str]) -> float:
    from lmms_eval.api.metrics import anls

    return float(anls(doc["answers"], predictions)["anls"])


def seed(doc: dict[str, Any], predictions: list[str]) -> float:
    u = utils("seedbench.utils")
    return float(u.seed_aggregation_result([u.seed_process_result(doc, predictions)["seed_all"]]))


def theirs(module: str, function: str) -> Callable[[dict[str, Any], list[str]], float]:
    return lambda doc, predictions: first_score(getattr(utils(module), function)(doc, predictions))


def case(module: str, yaml: str, text: str, score: Callable[..., float], predictions: list[str]) -> SimpleNamespace:
    return SimpleNamespace(module=module, yaml=yaml, text=text, score=score, predictions=predictions)


def results(task: str, function: str) -> Callable[..., float]:
    return theirs(f"{task}.utils", function)


CASES = {
    "pope": case("pope.utils", "pope/pope.yaml", "pope_doc_to_text", results("pope", "pope_process_results"), YES_NO),
    "mme": case("mme.utils", "mme/mme.yaml", "mme_doc_to_text", results("mme", "mme_process_results"), MME_STYLE),
    "gqa": case("gqa.utils", "gqa/gqa.yaml", "gqa_doc_to_text", gqa, WORDS),
    "textvqa": case(
        "textvqa.utils", "textvqa/_default_template_textvqa_yaml", "textvqa_doc_to_text",
        results("textvqa", "textvqa_process_results"), TEXTS,
    ),
    "vqav2": case(
        "vqav2.utils", "vqav2/vqav2_val.yaml", "vqav2_doc_to_text", results("vqav2", "vqav2_process_results"), TEXTS
    ),
    "vizwiz": case(
        "vizwiz_vqa.utils", "vizwiz_vqa/_default_template_vqa_yaml", "vizwiz_vqa_doc_to_text",
        results("vizwiz_vqa", "vizwiz_vqa_process_results"), TEXTS,
    ),
    "scienceqa_img": case(
        "scienceqa.utils", "scienceqa/scienceqa_img.yaml", "sqa_doc_to_text",
        results("scienceqa", "sqa_process_results"), STRICT_LETTERS,
    ),
    "seed": case("seedbench.utils", "", "seed_doc_to_text", seed, STRICT_LETTERS),
    "mmstar": case(
        "mmstar.utils", "mmstar/_default_template_yaml", "mmstar_doc_to_text",
        results("mmstar", "mmstar_process_results"), LETTERS,
    ),
    "ai2d": case("ai2d.utils", "ai2d/ai2d.yaml", "ai2d_doc_to_text", ai2d, STRICT_LETTERS),
    "chartqa": case(
        "chartqa.utils", "chartqa/chartqa.yaml", "chartqa_doc_to_text",
        results("chartqa", "chartqa_process_results"), NUMBERS,
    ),
    "docvqa": case("docvqa.utils", "docvqa/_default_template_docvqa_yaml", "docvqa_doc_to_text", docvqa, DATES),
    "ocrbench": case(
        "ocrbench.utils", "ocrbench/ocrbench.yaml", "ocrbench_doc_to_text",
        results("ocrbench", "ocrbench_process_results"), OCR,
    ),
    "realworldqa": case(
        "realworldqa.utils", "realworldqa/realworldqa.yaml", "realworldqa_doc_to_text",
        results("realworldqa", "realworldqa_process_results"), ROADS,
    ),
    # scored as groups, see test_mmbench_circular
    "mmbench_en": case(
        "mmbench.en_utils", "mmbench/_default_template_mmbench_en_yaml", "mmbench_doc_to_text", ai2d, []
    ),
    "mmbench_cn": case(
        "mmbench.cn_utils", "mmbench/_default_template_mmbench_cn_yaml", "mmbench_doc_to_text", ai2d, []
    ),
    "videomme": case(
        "videomme.utils", "videomme/videomme.yaml", "videomme_doc_to_text",
        results("videomme", "videomme_process_results"), LETTERS,
    ),
    "mvbench": case(
        "mvbench.utils", "mvbench/mvbench_action_sequence.yaml", "mvbench_doc_to_text",
        results("mvbench", "mvbench_process_results"), [x for x in LETTERS if x not in ("答案是B。", "选C")],
    ),
}  # fmt: skip


def load(name: str, root: Path) -> tuple[TaskSet, list[dict[str, Any]]]:
    """A benchmark's questions, and its rows as lmms-eval gets them."""
    write(root, name)
    for video in ("Video-MME/data/fFjv93ACGo8", "Video-MME/data/N1cdUjctpG8"):
        write_frames(root / video, 3)
    for video in ("star/Charades_segment/ZS9XR.mp4", "clevrer/video_validation/video_1.mp4"):
        write_frames(root / "MVBench" / video, 3)
    rows = PUBLIC[name].rows if name != "mvbench" else [r for rows in PUBLIC[name].files.values() for r in rows]
    # the tables' "nan" is a missing hint for the Chinese part, as it is for pandas in lmms-eval
    return load_benchmarks([name], root), [{**row, "hint": None} if row.get("hint") == "nan" else row for row in rows]
