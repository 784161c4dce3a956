"""The same questions by other harnesses' own command lines, for ``same_answers.py``.

Each takes a local task that asks every question as it is: no "answer with one word" behind it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vtc.eval import TaskSet

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
TASK = "same_answers"
FUNCTIONS = """
import io

from PIL import Image


def text(doc):
    return doc["question"]


def visual(doc):
    return [Image.open(io.BytesIO(doc["picture"])).convert("RGB")]


def score(doc, results):
    return {"right": float(results[0].strip().lower() in [text.lower() for text in doc["answers"]])}
"""
DEFINITION = """
task: same_answers
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: !function functions.text
doc_to_visual: !function functions.visual
doc_to_target: answer
process_results: !function functions.score
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false, num_beams: 1}}
"""


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    data = io.BytesIO()
    picture.save(data, format=kind)
    return data.getvalue()


def as_jpeg(picture: Image.Image) -> Image.Image:
    """What is left of a picture that VLMEvalKit sends: it encodes all of them as JPEG."""
    return Image.open(io.BytesIO(encoded(picture, "JPEG"))).convert("RGB")


def lmms_eval(python: str, model: str, arguments: str, tasks: TaskSet, tokens: int) -> list[str]:
    """Answers of lmms-eval's backend `model`, which it makes of `arguments`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {
                "question": one.question,
                "picture": encoded(tasks.image(one.image_id)),
                "answer": one.answer,
                "answers": [one.answer, *one.references],
            }
            for one in tasks.questions
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        (folder / "functions.py").write_text(FUNCTIONS)
        (folder / "task.yaml").write_text(DEFINITION.format(data=folder / "data.parquet", tokens=tokens))
        path = _run(
            [
                *(python, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", TASK),
                *("--include_path", name, "--batch_size", "1", "--output_path", f"{name}/out", "--log_samples"),
            ],
            {"LMMS_EVAL_DATASETS_CACHE": f"{name}/cache"},
            folder / "out",
            "*_samples_*.jsonl",
        )
        found = sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda s: s["doc_id"])
    answers = [one["filtered_resps"] for one in found]
    return [(a if isinstance(a, str) else a[0]).strip() for a in answers]


def vlmeval(python: str, url: str, model: str, tasks: TaskSet, tokens: int) -> list[str]:
    """Answers of VLMEvalKit's client for a server by its address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / f"{TASK}.tsv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(["index", "image", "question", "answer"])
            for i, one in enumerate(tasks.questions):
                picture = base64.b64encode(encoded(tasks.image(one.image_id))).decode()
                table.writerow([i, picture, one.question, one.answer])
        path = _run(
            [
                *(python, "-m", "vlmeval.run", "--data", TASK, "--model", model, "--base-url", url, "--mode", "infer"),
                *("--max-tokens", f"{tokens}", "--temperature", "0", "--api-nproc", "2", "--work-dir", f"{name}/out"),
            ],
            # tables as text, and small pictures as they are: it would enlarge those under 100 pixels
            {"LMUData": name, "PRED_FORMAT": "tsv", "VLMEVAL_MIN_IMAGE_EDGE": "1"},
            folder / "out",
            f"*_{TASK}.tsv",
        )
        with open(path, encoding="utf-8", newline="") as file:
            rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["index"]))
    return [row["prediction"].strip() for row in rows]


def _run(command: list[str], more: dict[str, str], out: Path, pattern: str) -> Path:
    """Run a harness, and find the one file that it writes under `out`; both may end with 0 where nothing ran."""
    done = subprocess.run(command, env={**os.environ, **OFFLINE, **more}, capture_output=True, text=True, check=False)
    found = [path for path in out.rglob(pattern) if not path.is_symlink()]
    if done.returncode or len(found) != 1:
        raise RuntimeError(f"{shlex.join(command)}\ngave {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return found[0]
