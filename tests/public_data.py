"""Small data sets in the published schemas of the public benchmarks, written to folders as the hub lays them out."""

# ruff: noqa: E501 - tables of rows

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """An encoded picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed * 13 % 256)).save(data, "PNG")
    return data.getvalue()


def struct(seed: int, path: str | None = None) -> dict[str, Any]:
    """A picture as the hub stores it."""
    return {"bytes": picture(seed), "path": path}


@dataclass(frozen=True)
class Public:
    """A benchmark: where its files lie, their rows, and the types that inference would get wrong."""

    folder: str
    files: dict[str, Rows]
    types: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """The rows of its first file."""
        return next(iter(self.files.values()))


def ten(*answers: str) -> list[str]:
    """Ten answers: each in turn."""
    return [answers[i % len(answers)] for i in range(10)]


def _pope() -> Rows:
    return [
        {
            "id": str(i), "question_id": str(i // 3), "question": f" Is there a {thing} in the image?",
            "answer": "yes" if i % 2 else "no", "image_source": f"COCO_val2014_{i // 3}", "image": struct(i // 3),
            "category": ("adversarial", "popular", "random")[i % 3],
        }
        for i, thing in enumerate(("snowboard", "car", "person", "backpack", "dog", "chair"))
    ]  # fmt: skip


def _mme() -> Rows:
    return [
        {
            "question_id": f"{category}/{number}.png", "image": struct(number),
            "question": f"Is it {category}? Please answer yes or no.", "answer": answer, "category": category,
        }
        for category, number in (("existence", 1), ("existence", 2), ("OCR", 3), ("code_reasoning", 4))
        for answer in ("Yes", "No")
    ]  # fmt: skip


def _gqa() -> dict[str, Rows]:
    questions = [
        {
            "id": f"20{i}",
            "imageId": f"n{i % 2}",
            "question": q,
            "answer": a,
            "fullAnswer": f"It is {a}.",
            "isBalanced": True,
        }
        for i, (q, a) in enumerate((("Is it overcast?", "no"), ("Who is on it?", "woman"), ("What is it?", "t-shirt")))
    ]
    images = [{"id": f"n{i}", "image": struct(i)} for i in range(2)]
    return {
        "testdev_balanced_instructions/testdev-00000-of-00001.parquet": questions,
        "testdev_balanced_images/testdev-00000-of-00001.parquet": images,
    }


def _textvqa() -> Rows:
    return [
        {
            "image_id": f"img{i}", "question_id": 34602 + i, "question": question, "question_tokens": question.split(),
            "image": struct(i), "image_width": 24, "image_height": 16, "answers": answers, "ocr_tokens": ["nokia"],
            "set_name": "val",
        }
        for i, (question, answers) in enumerate(
            (("what is the BRAND?", ten("nokia", "nokia", "Nokia's")), ("what time is it?", ten("10:30", "10.30", "half past")))
        )
    ]  # fmt: skip


def _vqav2() -> Rows:
    def people(*answers: str) -> list[dict[str, Any]]:
        return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(ten(*answers), 1)]

    return [
        {
            "question_type": "what", "multiple_choice_answer": answers[0], "answers": people(*answers),
            "image_id": 262148 + i, "answer_type": kind, "question_id": 262148000 + i, "question": question,
            "image": struct(i),
        }
        for i, (question, kind, answers) in enumerate(
            (("Where is he looking?", "other", ("down", "at table", "table")), ("How many?", "number", ("2", "two", "3")))
        )
    ]  # fmt: skip


def _vizwiz() -> Rows:
    return [
        {"question_id": f"VizWiz_val_{i}.jpg", "image": struct(i), "question": q, "answers": a, "category": c}
        for i, (q, a, c) in enumerate(
            (("Can you tell me what this is?", ten("soda", "coke", "unanswerable"), "other"),
             ("Is it ON?", ten("yes", "no"), "yes/no"))
        )
    ]  # fmt: skip


def _scienceqa() -> Rows:
    return [
        {
            "image": struct(i), "question": "Which is the best?", "choices": ["copper", "wood", "air"][: 3 - i], "answer": i,
            "hint": hint, "task": "closed choice", "grade": "grade8", "subject": subject, "topic": "t", "category": "c",
            "skill": "s", "lecture": "l", "solution": "s",
        }
        for i, (hint, subject) in enumerate((("Look closely.", "natural science"), ("", "social science")))
    ]  # fmt: skip


def _mmbench(language: str) -> Rows:
    options = ["dog", "cat", "car", "hat"] if language == "en" else ["狗", "猫", "车", "帽子"]
    rows = []
    for question, count in ((241, 4), (252, 2)):
        for turn in range(count):
            order = [options[(i + turn) % count] for i in range(count)]
            rows.append({
                "index": question + turn * 1_000_000, "question": "What is it?", "hint": "nan" if question == 252 else "A hint.",
                "answer": "ABCD"[order.index(options[0])], **dict(zip("ABCD", [*order, "nan", "nan"], strict=False)),
                "category": "identity_reasoning" if count == 4 else "ocr", "image": struct(question), "source": "s",
                "L2-category": "attribute_reasoning", "comment": "nan", "split": "dev",
            })  # fmt: skip
    return rows


def _seed() -> Rows:
    return [
        {
            "answer": "ABCD"[i % 4], "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four",
            "data_id": f"d{i}", "data_type": "image" if i < 2 else "video", "question": "How many towels?",
            "question_id": f"{101669 + i}", "question_type_id": 5, "segment": [],
            "image": [struct(10 * i + k) for k in range(1 if i < 2 else 12)],
        }
        for i in range(3)
    ]  # fmt: skip


def _mmstar() -> Rows:
    return [
        {
            "index": i, "question": f"Which one?\nOptions: A: x, B: y, C: z, D: w{i}", "image": picture(i), "answer": "ABCD"[i],
            "category": "math", "l2_category": ("geometry", "statistical reasoning")[i // 3],
            "meta_info": {"source": "MMBench", "split": "val", "image_path": f"images/{i}.jpg"},
        }
        for i in range(4)
    ]  # fmt: skip


def _videomme() -> Rows:
    return [
        {
            "video_id": "001", "duration": duration, "domain": "Knowledge", "sub_category": "Humanity & History", "url": "u",
            "videoID": name, "question_id": f"00{i}-1", "task_type": "Counting Problem", "question": "How many?",
            "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three."], "answer": "CA"[i],
        }
        for i, (name, duration) in enumerate((("fFjv93ACGo8", "short"), ("N1cdUjctpG8", "long")))
    ]  # fmt: skip


PUBLIC = {
    "pope": Public("POPE", {"data/test-00000-of-00001.parquet": _pope()}),
    "mme": Public("MME", {"data/test-00000-of-00001-a25531.parquet": _mme()}),
    "gqa": Public("GQA", _gqa()),
    "textvqa": Public("textvqa", {"data/validation-00000-of-00001.parquet": _textvqa()}),
    "vqav2": Public("VQAv2", {"data/validation-00000-of-00001.parquet": _vqav2()}),
    "vizwiz": Public("VizWiz-VQA", {"data/val-00000-of-00001.parquet": _vizwiz()}),
    "scienceqa_img": Public(
        "ScienceQA", {"ScienceQA-IMG/test-00000-of-00001.parquet": _scienceqa()}, {"answer": pa.int8()}
    ),
    "mmbench_en": Public("MMBench", {"en/dev-00000-of-00001.parquet": _mmbench("en")}),
    "mmbench_cn": Public("MMBench", {"cn/dev-00000-of-00001.parquet": _mmbench("cn")}),
    "seed": Public(
        "SEED-Bench", {"data/test-00000-of-00001.parquet": _seed()}, {"question_type_id": pa.int16(), "segment": pa.list_(pa.int64())}
    ),
    "mmstar": Public("MMStar", {"mmstar.parquet": _mmstar()}),
    "ai2d": Public(
        "ai2d",
        {
            "data/test-00000-of-00001.parquet": [
                {"question": "Which is a leaf?", "options": ["a", "b", "c"], "answer": str(i), "image": struct(i)} for i in range(3)
            ]
        },
    ),
    "chartqa": Public(
        "ChartQA",
        {
            "data/test-00000-of-00001.parquet": [
                {"type": kind, "question": "What is the value?", "answer": answer, "image": struct(i)}
                for i, (kind, answer) in enumerate((("human_test", "14"), ("augmented_test", "57.5%"), ("human_test", "Yes")))
            ]
        },
    ),
    "docvqa": Public(
        "DocVQA",
        {
            "DocVQA/validation-00000-of-00001.parquet": [
                {
                    "questionId": str(49153 + i), "question": "What is the date?", "question_types": ["form"], "image": struct(i),
                    "docId": 14465 + i, "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81", "answers": answers,
                    "data_split": "val",
                }
                for i, answers in enumerate((["1/8/93", "Jan 8 1993"], ["The Great Atlantic"]))
            ]
        },
    ),
    "ocrbench": Public(
        "OCRBench",
        {
            "data/test-00000-of-00001.parquet": [
                {"dataset": dataset, "question": "what is written?", "question_type": kind, "answer": answer, "image": struct(i)}
                for i, (dataset, kind, answer) in enumerate((
                    ("IIIT5K", "Regular Text Recognition", ["CENTRE"]), ("ESTVQA", "Scene Text-centric VQA", ["ten", "10"]),
                    ("HME100k", "Handwritten Mathematical Expression Recognition", ["\\frac { X } { 2 }"]),
                ))
            ]
        },
    ),
    "realworldqa": Public(
        "RealWorldQA",
        {
            "data/test-00000-of-00001.parquet": [
                {"image": struct(i), "question": question, "answer": answer, "image_path": f"{i}.webp"}
                for i, (question, answer) in enumerate((
                    ("Which is closer?\nA. car\nB. sign\nPlease answer directly with only the letter of the correct option "
                     "and nothing else.", "B"),
                    ("How many?\nPlease answer directly with a single word or number.", "2"),
                ))
            ]
        },
    ),
    "videomme": Public("Video-MME", {"videomme/test-00000-of-00001.parquet": _videomme()}),
    "mvbench": Public(
        "MVBench",
        {
            "json/action_sequence.json": [
                {
                    "video": "ZS9XR.mp4", "question": "What happened after?", "candidates": ["Ate it.", "Tidied up.", "Sat."],
                    "answer": "Tidied up.", "question_id": "I_T1", "start": 1.0, "end": 2.0, "accurate_start": 1.1,
                }
            ],
            "json/moving_count.json": [
                {"video": "video_1.mp4", "question": "How many?", "candidates": ["3", "2", "4"], "answer": "3"}
            ],
        },
    ),
}  # fmt: skip


def write(root: Path, name: str, files: dict[str, Rows] | None = None) -> Path:
    """Write a benchmark below `root` as its copy from the hub would lie there; `files` replace its own."""
    public = PUBLIC[name]
    for place, rows in (files or public.files).items():
        path = root / public.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            table = pa.Table.from_pylist(rows)
            for column, kind in public.types.items():
                at = table.schema.get_field_index(column)
                table = table.set_column(at, column, pa.array([row[column] for row in rows], kind))
            pq.write_table(table, path, row_group_size=2)  # several row groups, as in large files
        else:
            path.write_text(json.dumps(rows))
    return root


def write_frames(folder: Path, count: int) -> Path:
    """A video as a folder of numbered frames, each of its own colour: frame k is (k, 0, 0)."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", (16, 16), (k, 0, 0)).save(folder / f"{k}.png")
    return folder
