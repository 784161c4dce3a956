"""The same questions by several routes, greedy: ``python benchmarks/same_answers.py --pruner divprune --keep 64 ...``.

The first route is this process: transformers and vtc. Others are servers that speak OpenAI's chat completions, each
``--served NAME=URL`` or ``NAME=URL,{"vtc": {...}}`` with more fields of the request. It prints for each route how many
answers are those of the first, and how many are right; exit code 1 says that any differ.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import openai
from rich.progress import track

import vtc
from vtc.eval import TaskSet, load_tasks
from vtc.eval.tasks.media.images import as_data_url
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import chat_inputs
from vtc.eval.vlm.pruning_settings import parse_keep


def in_process(options: argparse.Namespace, tasks: TaskSet) -> list[str]:
    """Answers of the wrapped model."""
    loaded, found = load_model(options.model, device="cpu"), []
    vtc.compress(
        loaded.model,
        options.pruner,
        keep=options.keep,
        positions=options.positions,
        tokenizer=loaded.processor,
    )
    model: Any = loaded.model
    for one in track(tasks.questions, "in process"):
        picture = {"type": "image", "image": tasks.image(one.image_id)}
        inputs = chat_inputs(loaded.processor, one.question, [picture])
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=options.tokens)
        new = ids[0, inputs["input_ids"].shape[1] :]
        found.append(loaded.processor.decode(new, skip_special_tokens=True).strip())
    return found


def by_server(name: str, where: str, options: argparse.Namespace, tasks: TaskSet) -> list[str]:
    """Answers of a server."""
    url, _, more = where.partition(",")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    model, found = client.models.list().data[0].id, []
    for one in track(tasks.questions, name):
        picture = {"type": "image_url", "image_url": {"url": as_data_url(tasks.image(one.image_id))}}
        content: Any = [picture, {"type": "text", "text": one.question}]
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=options.tokens,
            extra_body=json.loads(more) if more else None,
        )
        found.append((answer.choices[0].message.content or "").strip())
    return found


def main() -> int:
    """Ask, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; the bundled model if left out")
    parser.add_argument("--pruner", default="divprune")
    parser.add_argument("--keep", type=parse_keep, default=64)
    parser.add_argument("--positions", default="compact", help="as the engines count them (default: compact)")
    parser.add_argument("--limit", type=int, default=20, help="questions of each task (default: 20)")
    parser.add_argument("--tokens", type=int, default=8, help="longest answer (default: 8)")
    parser.add_argument("--served", action="append", default=[], metavar="NAME=URL", help="a server to ask too")
    options = parser.parse_args()
    tasks = load_tasks(limit=options.limit)
    routes = {"in process": in_process(options, tasks)}
    for text in options.served:
        name, _, where = text.partition("=")
        routes[name] = by_server(name, where, options, tasks)
    first, n = routes["in process"], len(tasks.questions)
    print(f"| route | identical of {n} | right |\n|---|---|---|")
    for name, answers in routes.items():
        pairs = zip(answers, tasks.questions, strict=True)
        right = sum(a.lower() in map(str.lower, (q.answer, *q.references)) for a, q in pairs)
        print(f"| {name} | {sum(a == b for a, b in zip(first, answers, strict=True))} | {right} |")
    return int(any(answers != first for answers in routes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
