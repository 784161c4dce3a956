"""The contracts, one function each: it returns the largest difference, or raises ``Wrong`` with where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtc.pruners.base import Pruner

from .comparisons import SHOWS, TOLERANCE, NothingToSee, Wrong, chosen, close, same
from .generation_contracts import beams, second_turn
from .masked_reference import greedy_with_positions
from .model_snapshot import anatomy
from .model_under_test import Pruned, Setting, Subject
from .results import PRUNED


def keeping_all(subject: Subject, setting: Setting) -> float:
    """keep=1.0 is the untouched model, bit for bit: logits, tokens."""
    plain, inputs = subject.plain("ragged"), subject.prompts["ragged"].inputs
    width, n = inputs["input_ids"].shape[1], min(subject.tokens, 4)
    with replace(setting, pipeline=tuple(map(_all, setting.pipeline))).compressed(subject.model):
        logits = subject.model(**inputs, position_ids=plain.positions[..., :width], use_cache=False).logits
        again = subject.generate(inputs, n)
        report = subject.model.vtc.report
        if report.tokens_kept != report.tokens_total or not report.tokens_total:
            raise Wrong(f"keep=1.0 kept {report.tokens_kept} of {report.tokens_total} tokens")
    same(logits, plain.logits, "logits are")
    same(again.tokens, plain.generated.tokens[:, :n], "generated tokens are")
    return same(again.logits, plain.generated.logits[:, :n], "logits of generated tokens are")


def _all(pruner: Pruner) -> Pruner:
    if not hasattr(pruner, "keep"):
        raise NothingToSee(f"{pruner.name} has no keep that could be 1.0")
    return replace(pruner, keep=1.0)


def masked(shape: str) -> Callable[[Subject, Setting], float]:
    """Pruned equals masked on a prompt of `shape`: prefill, generated tokens, and what the caches hold."""

    def contract(subject: Subject, setting: Setting) -> float:
        plain, pruned, inputs = subject.plain(shape), subject.pruned(setting, shape), subject.prompts[shape].inputs
        valid = inputs["attention_mask"].bool()
        width = valid.shape[1]
        _dropped(pruned, plain.logits, valid)
        tokens = pruned.generated.tokens if pruned.generated is not None else valid.new_zeros(len(valid), 1).long()
        truth = subject.truth_of(pruned, shape, tokens)
        left = valid & pruned.left
        # a last token that the tower dropped never was, nor can a state be asked by one that it has not seen: the last
        # one left answers in its place
        if pruned.features or subject.recurrent:
            rows, last = torch.arange(len(left)), (left.long() * torch.arange(width)).argmax(1)
            truth[:, width - 1] = truth[rows, last]
            left[rows, last] = False
        left[:, -1] |= valid[:, -1]  # a visual token that the next one is asked of keeps its logits
        worst = close(pruned.logits, truth[:, :width], "prefill", left)
        if pruned.generated is not None:
            try:
                worst = max(worst, close(pruned.generated.logits, truth[:, width - 1 :], "generated tokens"))
                chosen(subject, truth[:, width - 1 :], tokens, "generated tokens")
            except Wrong:
                _generates_alike(subject, pruned, shape)
                raise
        _columns(pruned, valid)
        return worst

    return contract


def _generates_alike(subject: Subject, pruned: Pruned, shape: str) -> None:
    """Raise NothingToSee if what the untouched model itself generates is not what its masks make of the whole."""
    plain = subject.plain(shape).generated
    everything = replace(pruned, hidden=torch.zeros_like(pruned.hidden), vectors={}, features={})
    truth = subject.truth_of(everything, shape, plain.tokens)
    try:
        close(plain.logits, truth[:, -plain.logits.shape[1] :], "generated tokens")
    except Wrong as error:
        raise NothingToSee(f"what the untouched model generates is not what it makes of the whole: {error}") from None


def _dropped(pruned: Pruned, plain: Tensor, valid: Tensor) -> None:
    if not pruned.hidden.any():
        raise NothingToSee("the setting drops no token of the small model's pictures")
    rows = pruned.hidden.any(2).any(0)
    last = valid & (valid.cumsum(1) == valid.sum(1, keepdim=True))  # the last column of each row
    change = (pruned.logits - plain)[last].abs().amax(-1)[rows]
    if float(change.min()) < SHOWS * TOLERANCE * float(plain.abs().max()):
        raise NothingToSee(f"dropping tokens changes no logit by more than {float(change.min()):.1g}")


def _columns(pruned: Pruned, valid: Tensor) -> None:
    """Caches hold what is left of the longest row, and no more."""
    for layer, (held, window) in pruned.columns.items():
        hidden = pruned.hidden[layer]
        left = int((valid & ~hidden).sum(1).max()) if hidden.any() else valid.shape[1]
        # a visual token that the next one is asked of stays as a column
        asked = int(any(int(span.columns[-1]) == valid.shape[1] - 1 for span in pruned.report.spans))
        if window is None and not left <= held <= left + asked:
            raise Wrong(f"the cache of decoder layer {layer} holds {held} columns, and {left} tokens are left")


def text_only(subject: Subject, setting: Setting) -> float:
    """A batch without pictures is untouched bit for bit, also behind one with pictures."""
    plain, inputs = subject.plain("text"), subject.prompts["text"].inputs
    width, n = inputs["input_ids"].shape[1], subject.length("text")
    with setting.compressed(subject.model):
        subject.model(**subject.prompts["ragged"].inputs)
        logits = subject.model(**inputs, position_ids=plain.positions[..., :width], use_cache=False).logits
        again = subject.generate(inputs, n)
    same(again.tokens, plain.generated.tokens, "generated tokens are")
    return same(logits, plain.logits, "logits are")


def right_padding(subject: Subject, setting: Setting) -> float:
    """Right padding gives what left padding gives."""
    left, right = subject.pruned(setting, "ragged"), subject.pruned(setting, "right")
    masks = [subject.prompts[s].inputs["attention_mask"].bool() for s in ("ragged", "right")]
    kept = [m & ~p.hidden[-1] for m, p in zip(masks, (left, right), strict=True)]
    if not torch.equal(kept[0].sum(1), kept[1].sum(1)):
        raise Wrong("other numbers of tokens are kept under right padding")
    return close(right.logits[kept[1]][None], left.logits[kept[0]][None], "prefill, right against left padding")


def one_by_one(subject: Subject, setting: Setting) -> float:
    """Each row of a ragged batch by itself: the same tokens kept, the same logits."""
    prompt, together = subject.prompts["ragged"], subject.pruned(setting, "ragged")
    assert together.generated is not None
    n, worst = min(subject.tokens, 4), 0.0
    with setting.compressed(subject.model):
        for b in range(len(prompt.rows)):
            alone = subject.generate(prompt.alone(b).inputs, n)
            kept = _kept(subject.model.vtc.report, 0)
            try:
                if kept != _kept(together.report, b):
                    raise Wrong(f"row {b} keeps other tokens alone than in the batch")
                worst = max(worst, close(together.generated.logits[b : b + 1, :n], alone.logits, f"row {b} alone"))
            except Wrong:
                _placed_alike(subject, b)
                raise
    return worst


def _placed_alike(subject: Subject, row: int) -> None:
    """Raise NothingToSee if the untouched model gives a row other positions in a batch than by itself."""
    prompt, n = subject.prompts["ragged"], min(subject.tokens, 4)
    inputs = prompt.alone(row).inputs
    _, alone = greedy_with_positions(subject.truth, inputs, n, subject.special)
    width, together = inputs["input_ids"].shape[1], subject.plain("ragged").positions
    before = together.shape[-1] - subject.tokens + 1 - width
    if not torch.equal(together[..., row, before : before + width], alone[..., 0, :width]):
        raise NothingToSee("the untouched model gives a row other positions in a batch than by itself")


def _kept(report: Any, row: int) -> list[list[list[int]]]:
    spans = [i for i, span in enumerate(report.spans) if span.sample == row]
    return [[step.kept[i].tolist() for i in spans] for step in report.steps]


def with_sound(shape: str) -> Callable[[Subject, Setting], float]:
    """Pruned equals masked with sound beside the pictures, of which no column goes."""

    def contract(subject: Subject, setting: Setting) -> float:
        worst = masked(shape)(subject, setting)
        pruned, ids = subject.pruned(setting, shape), subject.prompts[shape].inputs["input_ids"]
        sound = ids == subject.prompts.tokens.audio
        taken = [s.sample for s in pruned.report.spans if bool(sound[s.sample, s.columns].any())]
        if taken or bool((pruned.hidden & sound).any()):
            raise Wrong(f"columns of sound are taken for a picture's, first in row {min(taken, default=0)}")
        deaf = replace(pruned, hidden=pruned.hidden | sound)
        ours, without = (subject.truth_of(p, shape, ids[:, -1:])[:, -1] for p in (pruned, deaf))
        change = (ours - without).abs().amax(-1)[sound.any(1)]
        if float(change.min()) < SHOWS * TOLERANCE * float(ours.abs().max()):
            raise NothingToSee(f"without its sound no logit of a row changes by more than {float(change.min()):.1g}")
        return worst

    return contract


def restored(subject: Subject, setting: Setting) -> float:
    """After the block everything is as before: hooks, classes, attributes, configs, outputs."""
    model, inputs, plain = subject.model, subject.prompts["ragged"].inputs, subject.plain("ragged")
    n = min(subject.tokens, 4)
    before = anatomy(model)
    with setting.compressed(model):
        subject.generate(inputs, n)
    after = anatomy(model)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        raise Wrong(f"restore left traces at {', '.join(sorted(changed)[:3])}")
    again = subject.generate(inputs, n)
    same(again.tokens, plain.generated.tokens[:, :n], "tokens after restore are")
    return same(again.logits, plain.generated.logits[:, :n], "logits after restore are")


CONTRACTS: dict[str, Callable[[Subject, Setting], float]] = {
    "keep=1.0, bit for bit": keeping_all,
    PRUNED: masked("ragged"),
    "a row of text": masked("text row"),
    "touching pictures": masked("touching"),
    "pictures of other sizes": masked("sizes"),
    "picture last": masked("last"),
    "videos": masked("video"),
    "sound beside pictures": with_sound("sound"),
    "sound in videos": with_sound("sound in video"),
    "right padding": right_padding,
    "one by one": one_by_one,
    "text only": text_only,
    "second turn": second_turn("ragged"),
    "second turn behind sound": second_turn("sound"),
    "beams": beams("singles"),
    "beams, several pictures": beams("text row"),
    "restored": restored,
}
# prompts that not every model takes
NEEDS = {
    "touching pictures": "touching",
    "pictures of other sizes": "sizes",
    "picture last": "last",
    "videos": "video",
    "sound beside pictures": "sound",
    "sound in videos": "sound in video",
    "second turn behind sound": "sound",
}
# uncompiled flex attention takes a hundred times longer: what it can get wrong is the mask
OF_FLEX = ("keep=1.0, bit for bit", PRUNED, "a row of text", "picture last")
FLEX_TOKENS = 2
