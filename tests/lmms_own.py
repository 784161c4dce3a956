"""Tasks of lmms-eval with functions of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_world import png
from lmms_world import use_functions, write_task

UTILS = """
def text(doc):
    return doc["question"]

def visual(doc):
    return [image.convert("RGB") for image in doc["images"]]

def clip(doc):
    return [doc["video"]]

def clips(doc):
    return [doc["video"], doc["video"]]

def nothing(doc):
    return []

def interleaved(doc):
    image, words = {"type": "image", "url": doc["images"][0]}, {"type": "text", "text": "and"}
    return [{"role": "user", "content": [image, words, image, words]}]

def share(doc, results):
    return {"points": {"right": int(results[0] == doc["answer"])}}

def percent(items):
    return 100.0 * sum(item["right"] for item in items) / len(items)

def marks(doc, results):
    return {"marks": float(len(results[0]))}

def mean(items):
    return sum(items) / len(items)

def submit(items, args):
    raise AssertionError("this writes a file")

def pairs(items):
    assert len(items) == 2, "pairs only"
    return sum(items)

def both(doc, results):
    score = float(results[0] == doc["answer"])
    return {"sent": results[0], "errors": 1 - score, "points": score, "pairs": score}
"""
LISTED = [{"metric": "points", "aggregation": "percent", "higher_is_better": True}]


def own_task(folder: Path, task: str, rows: list[dict[str, Any]], **config: Any) -> str:
    """A task with functions of its own; gives the path of its YAML file."""
    usual = {
        "test_split": "test", "output_type": "generate_until", "doc_to_target": "answer", "doc_to_text": "text",
        "doc_to_visual": "visual", "process_results": "share", "metric_list": LISTED,
    }  # fmt: skip
    path = write_task(folder, task, rows, **{**usual, **config})
    fields = ("doc_to_text", "doc_to_visual", "process_results", "aggregation", "doc_to_messages")
    return str(use_functions(path, UTILS, *fields))


def rows(count: int, images: int = 1, **more: Any) -> list[dict[str, Any]]:
    pictures = [{"bytes": png(i), "path": None} for i in range(count * images)]
    return [
        {"question": f"what is {i}?", "answer": f"a{i}", "images": pictures[i * images : (i + 1) * images], **more}
        for i in range(count)
    ]
