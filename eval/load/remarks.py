"""What a table does not say by itself: where pruning does not pay, and what makes figures hard to compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from vtc.eval.statistics.intervals import Interval

from .comparison import Comparison, Found
from .figures import Figures, paired_ratio
from .targets import Target

SAME_TOKENS = 0.01  # of prompt tokens: fewer differ by nothing
MATCHED = 0.1  # a control's prompt tokens are about those of a pruned prompt
OTHER_LENGTH = 0.02  # of answers
TOGETHER = 1.1  # tokens of one piece


def remarks(
    targets: Sequence[Target],
    base: Target,
    found: Found,
    compared: Mapping[tuple[str, int], Comparison],
    output_tokens: int,
) -> list[str]:
    """One line each."""
    said = [line for one in compared.values() for line in _pays(one, base)]
    said += [line for one in compared.values() for line in _comparable(one, base, found)]
    said += [line for one in compared.values() for line in _controls(one, targets, base, found)]
    said += [line for figures in found.values() for line in _broken(figures)]
    if output_tokens > 1 and any(one.limit for one in compared.values()):
        said.append(
            "the limit is of the prefill: where answers are long, the time between tokens bounds requests per second "
            "too; --output-tokens 1 measures the prefill"
        )
    return list(dict.fromkeys(said))


def times(ratio: Interval) -> str:
    """A ratio with its interval."""
    if math.isnan(ratio.value):
        return "-"
    return f"{ratio.value:.2f}x" + ("" if math.isnan(ratio.low) else f" [{ratio.low:.2f}, {ratio.high:.2f}]")


def is_pruned(target: Target) -> bool:
    """Whether a target prunes, as far as it says so."""
    return target.setting != (None, None)


def _pays(one: Comparison, base: Target) -> Iterator[str]:
    what = "making pictures smaller" if one.target.resize else "pruning" if is_pruned(one.target) else "it"
    at = f"{one.target.name} at concurrency {one.concurrency}"
    for ratio, measure in ((one.rate, "requests per second"), (one.ttft, "speed to the first token")):
        if math.isnan(ratio.low):
            continue
        if ratio.high < 1:
            yield f"{at}: {times(ratio)} the {measure} of {base.name}: {what} does not pay here"
        elif ratio.low <= 1:
            yield (
                f"{at}: {times(ratio)} the {measure} of {base.name}: no difference is shown; more --rounds tell "
                "smaller ones"
            )
        elif one.limit is not None and ratio.low > one.limit.speed_up:
            yield (
                f"{at}: {times(ratio)} the {measure} of {base.name} is beyond the limit of "
                f"{one.limit.speed_up:.2f}x: v, s and f are others on this server ({one.limit.words} were taken)"
            )
    if math.isnan(one.rate.low) and not math.isnan(one.rate.value):
        yield f"{at}: fewer than two rounds: the ratio to {base.name} has no interval"


def _comparable(one: Comparison, base: Target, found: Found) -> Iterator[str]:
    mine, theirs = found[one.target.name, one.concurrency], found[base.name, one.concurrency]
    name = one.target.name
    if mine.prompt_tokens and theirs.prompt_tokens:
        fewer = 1 - mine.prompt_tokens / theirs.prompt_tokens
        if one.target.resize and one.target.resize < 1 and fewer < SAME_TOKENS:
            yield (
                f"{name}: smaller pictures have as many prompt tokens as {base.name}'s: this model brings pictures to "
                "a size of its own, so that resize is no control here"
            )
        elif is_pruned(one.target) and not is_pruned(base) and fewer < SAME_TOKENS:
            yield f"{name}: its prompts have as many tokens as {base.name}'s: is pruning on?"
    if mine.completion_tokens and theirs.completion_tokens:
        more = mine.completion_tokens / theirs.completion_tokens - 1
        if abs(more) > OTHER_LENGTH:
            yield (
                f"{name} at concurrency {one.concurrency}: its answers are {more:+.0%} as long as {base.name}'s, which "
                "changes requests per second: compare the times to the first token, or say --output-tokens 1"
            )


def _controls(one: Comparison, targets: Sequence[Target], base: Target, found: Found) -> Iterator[str]:
    """A pruned target against smaller pictures of about as many tokens."""
    if one.target.resize or not is_pruned(one.target):
        return
    mine = found[one.target.name, one.concurrency]
    for control in targets:
        theirs = found.get((control.name, one.concurrency))
        if not control.resize or theirs is None or not mine.prompt_tokens or not theirs.prompt_tokens:
            continue
        plain = found.get((base.name, one.concurrency))
        if plain is not None and plain.prompt_tokens and theirs.prompt_tokens > (1 - SAME_TOKENS) * plain.prompt_tokens:
            continue  # no control at all, which is said elsewhere
        more = theirs.prompt_tokens / mine.prompt_tokens - 1
        ratio = paired_ratio(mine.rates, theirs.rates)
        if abs(more) > MATCHED:
            yield (
                f"{control.name} has {more:+.0%} prompt tokens of {one.target.name}: another resize makes it a control"
            )
        elif not math.isnan(ratio.low):
            verdict = "slower" if ratio.high < 1 else "faster" if ratio.low > 1 else "shown neither slower nor faster"
            yield (
                f"{one.target.name} at concurrency {one.concurrency} is {verdict} than smaller pictures of as many "
                f"tokens ({control.name}): {times(ratio)} their requests per second"
            )


def _broken(figures: Figures) -> Iterator[str]:
    at = f"{figures.target} at concurrency {figures.concurrency}"
    for kind, count in figures.errors.items():
        more = "; its queue is shorter than the concurrency (vtc serve --queue)" if kind == "HTTP 429" else ""
        yield f"{at}: {count} of {figures.sent} requests failed ({figures.examples[kind]}){more}"
    if figures.cut:
        yield f"{at}: {figures.cut} of {figures.rounds} blocks were cut short by --block-seconds"
    if math.isnan(figures.gap_50.value) and (figures.completion_tokens or 0) > 1:
        yield f"{figures.target}: answers come in one piece: no times between tokens were measured"
    elif figures.tokens_per_piece and figures.tokens_per_piece > TOGETHER:
        yield (
            f"{figures.target}: several tokens come at a time: times between pieces are no times between tokens; the "
            "column per token divides"
        )
