"""What each process of ``test_spread_models`` runs: ``python -m torch.distributed.run ... HOW FAMILY FOLDER RUN``.

HOW is ``tensor`` (transformers' ``tp_plan``) or ``fsdp`` (``fully_shard`` of every decoder layer). The methods of RUN's
share, or ``all``, run on the spread model and on a whole one; what differs, or is refused, is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contracts import TOLERANCE
from methods import BOTH_STAGES, METHODS, READING, fits
from sampling import OF_ZOO, taken
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText
from zoo import prompt
from zoo.tokens import SPECIAL

import vtc


def spread(how: str, folder: Path) -> Any:
    """A model over all processes."""
    if how == "tensor":
        return AutoModelForImageTextToText.from_pretrained(folder, tp_plan="auto").eval()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def seen(model: Any, setting: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[Any], torch.Tensor]:
    """Logits, kept ids and generated tokens of a model under a setting."""
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        logits = model(**inputs).logits
        kept = [[ids.tolist() for ids in step.kept] for step in model.vtc.report.steps]
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=list(SPECIAL))
    return logits, kept, tokens


def main(how: str, family: str, folder: Path, run: str) -> None:
    """Compare the methods that fit the family."""
    dist.init_process_group("gloo")
    whole, model = AutoModelForImageTextToText.from_pretrained(folder).eval(), spread(how, folder)
    inputs, found = prompt(family, "ragged").inputs, {}
    for setting in [*METHODS, READING, BOTH_STAGES]:
        if not fits(setting, family) or not (run == "all" or taken(setting, family, int(run), OF_ZOO)):
            continue
        want = seen(whole, setting, inputs)
        try:
            got = seen(model, setting, inputs)
        except NotImplementedError as error:
            found[str(setting)] = f"refused: {error}"
            continue
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (got[1], got[2].tolist()))
        valid = inputs["attention_mask"].bool()
        close = (got[0] - want[0])[valid].abs().max() < TOLERANCE
        same = all(one == (want[1], want[2].tolist()) for one in everywhere)
        found[str(setting)] = "same" if close and same else "OTHER"
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
