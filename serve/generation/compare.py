"""One question about one picture, unpruned and pruned: both answers, what was kept, and what each took."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from vtc.eval.cost.flops import Flops, LMFlops, count_flops
from vtc.eval.inspect.kept_tokens import draw_grid, grid_pictures, kept_masks, patch_size, where_pruned
from vtc.eval.tasks.media.images import as_data_url
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.prompts import TOKEN_INPUTS, Row
from vtc.eval.vlm.pruning_settings import UNPRUNED as PLAIN
from vtc.eval.vlm.pruning_settings import make_cell
from vtc.pipeline_text import parse
from vtc.serve.requests.chat_request import Sampling
from vtc.serve.requests.messages import Chat
from vtc.serve.requests.pictures import decode
from vtc.serve.requests.pruning_choice import Choice

from .engine import Engine, Generated

log = logging.getLogger("vtc.serve")


class Comparer:
    """Compares on an engine, in its thread."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._lm: LMFlops | None = None

    def compare(self, chat: Chat, choice: Choice, sampling: Sampling, unwanted: Callable[[], bool]) -> dict[str, Any]:
        """Answer a chat of one picture twice, greedily as `sampling` says; the JSON of the answer.

        Raises
        ------
        Refusal, Stopped
            As ``Engine.generate``.
        """
        engine = self._engine
        inputs = engine.inputs_of(chat)
        plain = engine.generate(inputs, Choice(), sampling, unwanted=unwanted)
        pruned = engine.generate(inputs, choice, sampling, unwanted=unwanted)
        picture = chat.pictures[0]
        image = decode(picture.data, picture.name, engine.limits)
        masks = kept_masks(pruned.report) if pruned.report is not None else []
        behind = grid_pictures(image, inputs.get("pixel_values"), len(masks), engine.processor) if masks else []
        patch = patch_size(masks, 2 if len(masks) > 1 else 1) if masks else 0
        drawn = [draw_grid(below, mask, patch) for below, mask in zip(behind, masks, strict=True)]
        return {
            "unpruned": _side(plain),
            "pruned": {
                **_side(pruned),
                "pruner": choice.pruner,
                "keep": choice.keep,
                "merges": any(pruner.merges for pruner in parse(choice.spec)),
                "where": where_pruned(pruned.report).strip() if pruned.report is not None else "",
            },
            "pictures": [as_data_url(p) for p in drawn],
            "flops_ratio": self._flops_ratio(inputs, plain, pruned, choice),
        }

    def _flops_ratio(self, inputs: dict[str, Any], plain: Generated, pruned: Generated, choice: Choice) -> float | None:
        """FLOPs of the pruned prefill, tower included, relative to the unpruned one; None where they aren't counted."""
        engine = self._engine
        engine.set_up(Choice())
        vision = {name: value for name, value in inputs.items() if name not in (*TOKEN_INPUTS, "input_ids")}
        row = Row(Question("compare", "", "image", "", ""), inputs["input_ids"][0], {}, vision, 0, plain.measured.total)
        text = plain.prompt_tokens - plain.measured.total
        try:
            self._lm = self._lm or LMFlops(engine.model)
            before, after = (
                count_flops(
                    engine.model,
                    cell,
                    row,
                    [text + n for n in found.measured.per_layer],
                    self._lm,
                    asked=found.measured.asked,
                )
                for cell, found in ((PLAIN, plain), (make_cell(choice.spec, None), pruned))
            )
        except NotImplementedError:
            return None
        except Exception:  # a figure beside the answers: without it they are as good
            log.exception("the FLOPs of %s were not counted", choice.spec)
            return None
        return (_all(after) + pruned.measured.own) / _all(before)


def _all(flops: Flops) -> int:
    return flops.vision + flops.projector + flops.lm + flops.head


def _side(found: Generated) -> dict[str, Any]:
    return {
        "text": found.text,
        "finish_reason": found.finish,
        "tokens": found.tokens,
        "visual_tokens_seen": found.measured.total,
        "visual_tokens_kept": found.measured.kept,
        "visual_tokens_per_layer": round(found.measured.mean, 1),
        "first_token_seconds": round(found.times[0] - found.began, 4),
        "seconds": round(found.times[-1] - found.began, 4),
    }
