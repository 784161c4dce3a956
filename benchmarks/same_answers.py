"""The same questions by several routes, greedy: ``python benchmarks/same_answers.py --pruner divprune --keep 64 ...``.

The first route is this process: transformers and vtc. Others are

- servers that speak OpenAI's chat completions, asked by its client: ``--served NAME=URL``, or
  ``NAME=URL,{"vtc": {...}}`` with more fields of the request;
- backends of lmms-eval, by its command line: ``--lmms-eval "NAME=BACKEND ARGUMENTS"``, where the arguments are what it
  takes as ``--model_args``; ``--lmms-python`` is the Python that has it, if not this one;
- VLMEvalKit by a server's address: ``--vlmeval NAME=URL`` and ``--vlmeval-python``. It sends pictures as JPEG, so this
  process answers about such pictures too, and its answers are held against those.

It prints for each route how many answers are those of this process, and how many are right; exit code 1 says that any
differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from harness_answers import as_jpeg, lmms_eval, vlmeval
from PIL import Image
from rich.progress import track

import vtc
from vtc.eval import TaskSet, load_tasks
from vtc.eval.tasks.media.images import as_data_url
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import chat_inputs
from vtc.eval.vlm.pruning_settings import parse_keep


def in_process(
    options: argparse.Namespace, tasks: TaskSet, seen: Callable[[Image.Image], Image.Image] = lambda picture: picture
) -> list[str]:
    """Answers of the wrapped model, about what `seen` makes of each picture."""
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
        picture = {"type": "image", "image": seen(tasks.image(one.image_id))}
        inputs = chat_inputs(loaded.processor, one.question, [picture])
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=options.tokens)
        new = ids[0, inputs["input_ids"].shape[1] :]
        found.append(loaded.processor.decode(new, skip_special_tokens=True).strip())
    return found


def by_server(name: str, where: str, options: argparse.Namespace, tasks: TaskSet) -> list[str]:
    """Answers of a server."""
    url, _, more = where.partition(",")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    model, found = served_name(url), []
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


def name_and_rest(text: str) -> tuple[str, str]:
    """NAME=REST, the way every route is given."""
    name, equals, rest = text.partition("=")
    if not (name and equals and rest):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=...")
    return name, rest


def served_name(url: str) -> str:
    """What a server calls its model."""
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120).models.list().data[0].id


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; the bundled model if left out")
    parser.add_argument("--pruner", default="divprune")
    parser.add_argument("--keep", type=parse_keep, default=64)
    parser.add_argument("--positions", default="compact", help="as the engines count them (default: compact)")
    parser.add_argument("--limit", type=int, default=20, help="questions of each task (default: 20)")
    parser.add_argument("--tokens", type=int, default=8, help="longest answer (default: 8)")
    route: dict[str, Any] = {"action": "append", "default": [], "type": name_and_rest}
    parser.add_argument("--served", metavar="NAME=URL", help="a server to ask too", **route)
    parser.add_argument("--lmms-eval", metavar="NAME=BACKEND ARGUMENTS", help="a backend of lmms-eval", **route)
    parser.add_argument("--lmms-python", default=sys.executable, help="a Python that has lmms-eval")
    parser.add_argument("--vlmeval", metavar="NAME=URL", help="a server that VLMEvalKit asks", **route)
    parser.add_argument("--vlmeval-python", default=sys.executable, help="a Python that has VLMEvalKit")
    return parser.parse_args()


def main() -> int:
    """Ask, and compare."""
    options = parse_arguments()
    tasks, differ = load_tasks(limit=options.limit), False
    expected = in_process(options, tasks)

    def row(name: str, answers: list[str]) -> None:
        nonlocal differ
        pairs = zip(answers, tasks.questions, strict=True)
        right = sum(a.lower() in map(str.lower, (q.answer, *q.references)) for a, q in pairs)
        same = sum(a == b for a, b in zip(expected, answers, strict=True))
        differ |= same < len(answers)
        print(f"| {name} | {same} | {right} |", flush=True)

    print(f"| route | identical of {len(expected)} | right |\n|---|---|---|")
    row("in process", expected)
    for name, where in options.served:
        row(name, by_server(name, where, options, tasks))
    for name, text in options.lmms_eval:
        backend, _, arguments = text.partition(" ")
        row(name, lmms_eval(options.lmms_python, backend, arguments, tasks, options.tokens))
    if options.vlmeval:
        expected = in_process(options, tasks, as_jpeg)
        row("in process, pictures as JPEG", expected)
    for name, url in options.vlmeval:
        row(name, vlmeval(options.vlmeval_python, url, served_name(url), tasks, options.tokens))
    return int(differ)


if __name__ == "__main__":
    raise SystemExit(main())
