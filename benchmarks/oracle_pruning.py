"""How well the explainer's own target prunes: ``python benchmarks/oracle_pruning.py --limit 5 --output DIR``.

Relevance (``vtc.eval.inspect.relevance``) needs the answer, so it is no method; but if the tokens that it ranks highest
did not carry the answer, nothing that predicts it could. Of the questions that the unpruned bundled model answers
rightly, this prints the share that it still answers rightly with the best tokens alone, kept before decoder layer 0: by
relevance, by the explainer's prediction of it, by the first layer's attention that it is predicted from, and at random.
The labels are cached in ``DIR``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import vtc
from vtc.bundled_files import bundled_data
from vtc.eval.files.atomic import write_atomic
from vtc.eval.sweep.answer import answer_plain
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.explainer.relevance_labels import label_configuration, make_labels, samples
from vtc.eval.vlm.loading import Loaded, config_hash, load_model
from vtc.eval.vlm.prompts import make_row
from vtc.pipeline_text import parse
from vtc.pruners.explainer import Explainer, predict
from vtc.pruners.primitives.ranking import top_k


@dataclass(kw_only=True)
class Given(vtc.Pruner):
    """Keeps the tokens with the highest given scores `[N]`, before the first layer."""

    name: ClassVar[str] = "given"
    stage: ClassVar[str] = "decoder"
    scores: Tensor

    def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
        """Where the explainer prunes."""
        return (vtc.Stop(self.stage, 0, self.keep),)

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        """The best `k`."""
        return top_k(self.scores[None], k)


def share_kept(
    loaded: Loaded, tasks: TaskSet, scores: dict[str, Tensor] | None, names: Sequence[str], keep: float
) -> list[float]:
    """Score of each question `names` when the tokens with the highest `scores` stay; None: random ones."""
    found, of = [], {q.question_id: q for q in tasks.questions}
    for name in names:
        question = of[name]
        row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
        method = parse("random(layer=0)", keep=keep) if scores is None else (Given(keep=keep, scores=scores[name]),)
        with vtc.compressed(loaded.model, method) as model:
            answer = answer_plain(model, loaded.processor, [row], None, 16)[0].text
        found.append(metric(question.metric).score(question, answer))
    return found


def main() -> None:
    """Label, prune, print, and write ``oracle.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=5, help="questions per task")
    parser.add_argument("--keep", default="0.25,0.11")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    loaded = load_model(None)
    tasks = load_tasks(bundled_data()).subset(None, options.limit)
    options.output.mkdir(parents=True, exist_ok=True)
    with ResultStore(options.output / "labels.jsonl", config_hash(label_configuration(loaded, tasks, 16))) as store:
        make_labels(loaded, tasks, store, 16, lambda n: None)
        labelled = {s.question_id: s for s in samples(store, tasks)}
        heads, width = next((row["heads"], row["width"]) for row in store.rows.values())
    network = Explainer().tensors(torch.device("cpu"), heads, width)
    ways = {
        "oracle": {name: s.relevance for name, s in labelled.items()},
        "predicted": {name: predict(network, s.attention[None])[0] for name, s in labelled.items()},
        "attention": {name: s.attention for name, s in labelled.items()},
        "random": None,
    }
    print(f"{len(labelled)} of {len(tasks.questions)} questions answered rightly by the unpruned model; still right:")
    report: dict[str, dict[str, float]] = {}
    for keep in map(float, options.keep.split(",")):
        for way, scores in ways.items():
            found = share_kept(loaded, tasks, scores, list(labelled), keep)
            report.setdefault(way, {})[f"{keep:g}"] = sum(found) / len(found)
            print(f"keep {keep:g}  {way:>9}  {100 * sum(found) / len(found):5.1f}%", flush=True)
    about = {"limit": options.limit, "questions": len(tasks.questions), "right": len(labelled), "still_right": report}
    write_atomic(options.output / "oracle.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
