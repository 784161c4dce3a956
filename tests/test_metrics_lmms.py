"""Prompts and scores of the ready definitions beside lmms-eval's own functions, on the same rows and predictions.

Needs lmms-eval (the extra lmms); nothing is downloaded.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from public_data import PUBLIC, write, write_frames

from vtc.eval.benchmarks import load_benchmarks
from vtc.eval.metrics import metric, official
from vtc.eval.metrics.anls import levenshtein
from vtc.eval.metrics.letters import find_letter
from vtc.eval.metrics.relaxed import as_number
from vtc.eval.metrics.vqa_text import CONTRACTIONS, textvqa_form, vqa_form
from vtc.eval.tasks import Question, TaskSet

pytest.importorskip("lmms_eval", reason="the extra lmms is not installed: pip install 'vtc[lmms]'")

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


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_scores(name: str, tmp_path: Path):
    tasks, rows = load(name, tmp_path)
    c = CASES[name]
    assert len(rows) == len(tasks.questions)
    for q, row in zip(tasks.questions, rows, strict=True):
        doc = copy.deepcopy(row)
        arguments = (doc, prompt_options(c.yaml)) if c.yaml else (doc,)
        assert q.question == getattr(utils(c.module), c.text)(*arguments)
        for prediction in c.predictions:
            wanted = c.score(copy.deepcopy(row), [prediction])
            assert metric(q.metric).score(q, prediction) == pytest.approx(wanted, abs=1e-12), (prediction, q.answer)


def answered(tasks: TaskSet, predictions: list[str], seed: int) -> list[tuple[Question, str]]:
    """A random prediction for every question, right more often than not."""
    rng = random.Random(seed)
    return [(q, q.answer if rng.random() < 0.6 else rng.choice(predictions)) for q in tasks.questions]


def ours(pairs: list[tuple[Question, str]]) -> dict[str, float]:
    rows = {
        q.question_id: {"score": metric(q.metric).score(q, p), "parsed": metric(q.metric).parse(q, p)} for q, p in pairs
    }
    return next(iter(official([q for q, _ in pairs], rows).values()))


@pytest.mark.parametrize("seed", range(20))
def test_pope_figures(seed: int, tmp_path: Path):
    tasks, rows = load("pope", tmp_path)
    u = utils("pope.utils")
    pairs = answered(tasks, ["yes", "no"], seed)
    results = [u.pope_process_results(row, [p])["pope_accuracy"] for row, (_, p) in zip(rows, pairs, strict=True)]
    found = ours(pairs)
    assert found["accuracy"] == pytest.approx(u.pope_aggregate_accuracy(results))
    assert found["precision"] == pytest.approx(u.pope_aggregate_precision(results))
    assert found["recall"] == pytest.approx(u.pope_aggregate_recall(results))
    assert found["f1"] == pytest.approx(u.pope_aggregate_f1_score(results))
    # lmms-eval counts the yes of the answers, which is one half for any model; POPE's ratio is of the predictions
    assert u.pope_aggregate_yes_ratio(results) == 0.5
    assert found["yes_ratio"] == pytest.approx(sum(p == "yes" for _, p in pairs) / len(pairs))


@pytest.mark.parametrize("seed", range(20))
def test_mme_scores(seed: int, tmp_path: Path):
    tasks, rows = load("mme", tmp_path)
    u = utils("mme.utils")
    pairs = answered(tasks, MME_STYLE, seed)
    parts: dict[str, list[Any]] = {"mme_perception_score": [], "mme_cognition_score": []}
    for row, (_, p) in zip(rows, pairs, strict=True):
        for key, value in u.mme_process_results(row, [p]).items():
            parts[key].append(value)
    found = ours(pairs)
    assert found["mme_perception"] == pytest.approx(u.mme_aggregate_results(parts["mme_perception_score"]))
    assert found["mme_cognition"] == pytest.approx(u.mme_aggregate_results(parts["mme_cognition_score"]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
def test_mmbench_circular(name: str, seed: int, tmp_path: Path):
    tasks, rows = load(name, tmp_path)
    u = utils(f"mmbench.{name[-2:]}_utils".replace("mmbench_", ""))
    pairs = answered(tasks, ["A", "B.", "(C) car", "The answer is D", "cat", "", "dog or cat"], seed)
    results = [u.mmbench_process_results(row, [p])["gpt_eval_score"] for row, (_, p) in zip(rows, pairs, strict=True)]
    # a table turns what is missing into nan
    results = [{k: float("nan") if v == "nan" else v for k, v in r.items()} for r in results]
    overall, by_category, _ = u.mmbench_evaluator.eval_result(results, eval_method="static")
    found = ours(pairs)
    assert found["circular_accuracy"] == pytest.approx(overall)
    for category, accuracy in by_category.items():
        assert found[f"circular_accuracy/{category}"] == pytest.approx(accuracy)


@pytest.mark.parametrize("seed", range(5))
def test_means_over_categories(seed: int, tmp_path: Path):
    """MMStar's average of categories; VideoMME's and MVBench's share of right answers, in percent there."""
    tasks, rows = load("mmstar", tmp_path)
    pairs = answered(tasks, LETTERS, seed)
    u = utils("mmstar.utils")
    results = [u.mmstar_process_results(row, [p])["average"] for row, (_, p) in zip(rows, pairs, strict=True)]
    assert ours(pairs)["category_average"] == pytest.approx(u.mmstar_aggregate_results(results))
    tasks, rows = load("videomme", tmp_path)
    pairs = answered(tasks, LETTERS, seed)
    u = utils("videomme.utils")
    results = [
        u.videomme_process_results(r, [p])["videomme_perception_score"] for r, (_, p) in zip(rows, pairs, strict=True)
    ]
    assert 100 * ours(pairs)["accuracy"] == pytest.approx(u.videomme_aggregate_results(results))
    tasks, rows = load("mvbench", tmp_path)
    pairs = answered(tasks, ["A", "B", "(C)"], seed)
    u = utils("mvbench.utils")
    results = [u.mvbench_process_results(r, [p])["mvbench_accuracy"] for r, (_, p) in zip(rows, pairs, strict=True)]
    assert 100 * ours(pairs)["accuracy"] == pytest.approx(u.mvbench_aggregate_results(results))


def test_ocrbench_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks, rows = load("ocrbench", tmp_path)
    u = utils("ocrbench.utils")
    monkeypatch.setattr(u, "OCRBench_score", dict.fromkeys(u.OCRBench_score, 0))  # it adds up from call to call
    monkeypatch.setattr(u, "generate_submission_file", lambda *a, **k: tmp_path / "out.txt")
    pairs = [(q, p) for q, p in zip(tasks.questions, ["centre", "eleven", "\\frac{X}{2}"], strict=True)]
    results = [u.ocrbench_process_results(r, [p])["ocrbench_accuracy"] for r, (_, p) in zip(rows, pairs, strict=True)]
    assert ours(pairs)["ocrbench_score"] / 1000 == pytest.approx(u.ocrbench_aggregate_accuracy(results, None))


def test_normal_forms_of_random_answers():
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    processor = EvalAIAnswerProcessor()
    rng = random.Random(0)
    parts = [
        "the", "A", "an", "two", "None", "dont", "couldnt've", "y'allll", "it's", "o'clock", "1,000", "3.5", ".5",
        "U.S.", ",", ".", "?", "!", "-", "/", "(", ")", "'", '"', ":", "$5", "50%", "é", "ß", "left-right", "red,blue",
        "\t", "\n", "somebody'd", "shes", "10:30", "@home", "a_b", "x=y",
    ]  # fmt: skip
    for _ in range(3000):
        text = rng.choice(["", " "]).join(rng.choices(parts, k=rng.randint(0, 6)))
        assert textvqa_form(text) == processor(text), repr(text)
        plain = text.replace("\n", " ").replace("\t", " ").strip()
        assert vqa_form(text) == processor.process_digit_article(processor.process_punctuation(plain)), repr(text)
    # keys with a capital can't be met: the text is in lower case by then
    table = {key: value for key, value in processor.CONTRACTIONS.items() if key == key.lower() and key != value}
    assert table == CONTRACTIONS


def test_anls_and_relaxed_of_random_texts():
    from lmms_eval.api.metrics import anls, levenshtein_distance

    relaxed = utils("chartqa.utils").relaxed_correctness
    rng = random.Random(1)
    for _ in range(500):
        a, b = ("".join(rng.choices("ab é", k=rng.randint(0, 8))) for _ in range(2))
        assert levenshtein(a, b) == levenshtein_distance(a, b)
        q = Question("q", "t", "i", "?", b, references=(b, "aa"), metric="anls")
        assert metric("anls").score(q, a) == pytest.approx(anls([b, "aa"], [a])["anls"], abs=1e-12)
    for wanted in NUMBERS[:-1]:
        for given in NUMBERS:
            q = Question("q", "t", "i", "?", wanted, metric="relaxed")
            assert metric("relaxed").score(q, given) == float(relaxed(given, wanted)), (given, wanted)
    assert as_number("12 %") == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("text", "here", "there"),
    [
        ("b", "B", ""),  # a lower-case letter alone
        ("Ｂ", "B", ""),  # a full-width one
        ("A cat", "", "A"),  # the article
        ("A or B", "", "A"),  # undecided
        ("Because", "", "B"),  # the first letter of a word
        ("The answer is: Dog", "", "D"),
        ("A is wrong. The answer is C.", "C", "A"),
    ],
)
def test_known_differences_in_letters(text: str, here: str, there: str):
    """Where lmms-eval's reading is not followed: kept here so that a change on either side is noticed."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    assert find_letter(text) == here
    assert extract_mcq_answer(text, ["A", "B", "C", "D"]) == there


def test_known_differences_in_yes_and_no(tmp_path: Path):
    """POPE: lmms-eval wants the bare word and leaves other answers out of the recall; here they are misses."""
    tasks, rows = load("pope", tmp_path)
    u = utils("pope.utils")
    yes = next(i for i, row in enumerate(rows) if row["answer"] == "yes")
    sentence = u.pope_process_results(rows[yes], ["Yes, there is."])["pope_accuracy"]
    assert sentence["score"] == 0
    assert metric("pope").score(tasks.questions[yes], "Yes, there is.") == 1
    pairs = [(q, q.answer if i != yes else "maybe") for i, q in enumerate(tasks.questions)]
    results = [u.pope_process_results(row, [p])["pope_accuracy"] for row, (_, p) in zip(rows, pairs, strict=True)]
    assert u.pope_aggregate_recall(results) == 1
    assert ours(pairs)["recall"] == pytest.approx(2 / 3)
