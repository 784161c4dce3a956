"""Small lmms-eval tasks on local folders, and its command line in a process of its own."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench_world import png

REASON = "needs lmms-eval, the extra lmms: pip install 'vtc[lmms]'"
# lmms-eval reads this once per process
os.environ.setdefault("LMMS_EVAL_DATASETS_CACHE", tempfile.mkdtemp(prefix="vtc-lmms-data-"))


def require_lmms_eval() -> None:
    """Skip the module's tests where lmms-eval, or what its LLaVA backend imports, is not installed."""
    for package in ("lmms_eval", "decord", "datasets"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{REASON} ({package} is missing)", allow_module_level=True)


def installed_task(name: str) -> str:
    """Path of a task's definition in the installed lmms-eval."""
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "tasks" / name)


def write_task(folder: Path, task: str, rows: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """Write a task's data, with encoded images, and its YAML file."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_list([dict(row) for row in rows])
    for column in data.column_names:
        value = rows[0][column]
        if isinstance(value, dict):
            data = data.cast_column(column, datasets.Image())
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            data = data.cast_column(column, datasets.Sequence(datasets.Image()))
    data.to_parquet(folder / f"{task}.parquet")
    source = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": str(folder / f"{task}.parquet")}}}
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump({"task": task, **source, **config}))
    return path


def pope_rows(questions: Sequence[tuple[bytes, str, str]]) -> list[dict[str, Any]]:
    """Rows in the schema of the public POPE, of images, questions and answers."""
    return [
        {
            "id": str(i), "question_id": str(i + 1), "question": question, "answer": answer, "image_source": f"img_{i}",
            "category": ("random", "popular", "adversarial")[i % 3], "image": {"bytes": image, "path": None},
        }
        for i, (image, question, answer) in enumerate(questions)
    ]  # fmt: skip


def write_pope(folder: Path, questions: Sequence[tuple[bytes, str, str]], task: str = "pope_local") -> Path:
    """A task that is lmms-eval's POPE on local data, without its "single word" (the bundled model never read that)."""
    options = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "num_beams": 1}
    bare = {"default": {"pre_prompt": "", "post_prompt": ""}}
    more = {
        "include": installed_task("pope/pope.yaml"),
        "generation_kwargs": options,
        "lmms_eval_specific_kwargs": bare,
    }
    return write_task(folder, task, pope_rows(questions), **more)


def write_small_pope(folder: Path) -> Path:
    """A POPE of two pictures with two questions each in `folder`, which is returned."""
    answers = zip("abcd", ["yes", "no"] * 2, strict=True)
    write_pope(folder, [(png(i // 2), f"is there a {c}?", a) for i, (c, a) in enumerate(answers)])
    return folder


def use_functions(path: Path, text: str, *fields: str) -> Path:
    """Have `fields` of a task's YAML file name functions of a module beside it, whose `text` is this."""
    (path.parent / "utils.py").write_text(text)
    content = path.read_text()
    for field in fields:
        content = content.replace(f"{field}: ", f"{field}: !function utils.")
    path.write_text(content)
    return path


def requests_of(tasks: Path, lm: Any, name: str = "pope_local") -> list[Any]:
    """The requests of a task in a folder, given to the backend as the evaluator does."""
    from lmms_eval.api.task import ConfigurableTask

    from vtc.integrations.lmms_eval.task_lookup import load_tasks

    task = copy.copy(load_tasks(name, str(tasks))[name])
    if lm.is_simple:
        task.construct_requests = ConfigurableTask.construct_requests.__get__(task)
    task.build_all_requests()
    lm.task_dict[name] = task.dataset
    return task.instances


def run_lmms_eval(*arguments: str, processes: int = 1, accelerate: bool = False) -> str:
    """Run its command line without network, by itself or behind a launcher; gives what it printed.

    Raises
    ------
    AssertionError
        If it fails, with its output.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m"]
    if processes > 1:
        offline["ACCELERATE_USE_CPU"] = "true"
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    if accelerate:
        launcher += ["accelerate.commands.launch", "--cpu", "-m"]
    command = [*launcher, "lmms_eval", *arguments]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def result(folder: Path) -> dict[str, Any]:
    """The results that it wrote."""
    (path,) = folder.rglob("*_results.json")
    return json.loads(path.read_text())


def samples(folder: Path) -> list[dict[str, Any]]:
    """The samples that it wrote, in the order of the data."""
    (path,) = folder.rglob("*_samples_*.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])


def token_files(folder: Path) -> list[dict[str, Any]]:
    """What vtc wrote beside them, one per process."""
    found = [json.loads(path.read_text()) for path in folder.rglob("*_vtc_tokens*.json")]
    return sorted(found, key=lambda told: told["rank"])
