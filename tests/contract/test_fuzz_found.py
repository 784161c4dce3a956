"""What the fuzzer found once, as draws written out: each must be exact, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzz.check import check
from fuzz.draws import Draw
from zoo import FAMILIES
from zoo.tokens import IMAGE

MIXED = [f for f in FAMILIES if not f.startswith("qwen")]  # compact positions are not defined for several axes
RANDOM = (("random", {"keep": 4}),)


def exact(draw: Draw) -> None:
    result = check(draw)
    assert result.status == "exact", f"{result.status}: {result.why}\n{result.trace}"


@pytest.mark.parametrize("family", MIXED)
def test_compact_positions_go_on_behind_the_last_token_left(family: str) -> None:
    """Of a prompt that ends in a picture the last tokens go; the reply must leave no gap where they were."""
    exact(Draw(family, RANDOM, ((3, "i0"), (2, "i0", 4)), "greedy", positions="compact"))


@pytest.mark.parametrize("family", MIXED)
def test_compact_positions_leave_no_gap_behind_an_earlier_turn(family: str) -> None:
    """A second turn begins with a picture whose first tokens go."""
    exact(Draw(family, RANDOM, ((6,),), "turns", positions="compact", tail=("i0", 3)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_first_turn_of_text_stays_padded(family: str) -> None:
    """Nothing was pruned yet, and so nobody had looked at the padding, when the first picture comes."""
    exact(Draw(family, RANDOM, ((6,), (4,)), "turns", tail=("i0", 3)))


@pytest.mark.parametrize("method", ["visionzip", "random"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gemma3", "llava_sliding")])
def test_candidates_behind_a_prompt_that_ends_in_a_picture(family: str, method: str) -> None:
    """Assisted decoding's first forward has candidates behind the picture; the first token still comes from it."""
    if (method, family) == ("visionzip", "llava_onevision"):
        pytest.skip("visionzip says that it can't merge there")
    exact(
        Draw(family, ((method, {"keep": 3}),), ((5, "i0", 3, 6, "i0"),), "assisted", sequences=3, tokens=6, seed=1433)
    )


# the others write marks between the tokens of a picture, which stay
@pytest.mark.parametrize("family", [f for f in MIXED if f not in ("idefics3", "smolvlm", "mistral3", "pixtral")])
def test_a_prompt_of_pictures_alone_that_would_lose_them_is_refused(family: str) -> None:
    result = check(Draw(family, (("vtw", {"layer": 3}),), (("i0",),), "greedy", positions="compact"))
    assert result.status == "refused", f"{result.status}: {result.why}"
    assert "a prompt of pictures alone would lose all its tokens" in result.why


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_a_picture_of_a_second_turn_sees_itself_both_ways(attention: str) -> None:
    """Gemma3's pattern is kept on a pruned cache too, also where it comes as flex attention's block mask."""
    rows = (("i0", 4), (2, "i0"))
    exact(Draw("gemma3", (("random", {"keep": 9}),), rows, "turns", attention=attention, tail=("i0", 3)))


@pytest.mark.parametrize("mode", ["forward", "greedy", "turns"])
# the others' spans are all of one size
@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "pixtral"])
def test_the_longest_row_ends_in_a_picture_and_loses_nothing(family: str, mode: str) -> None:
    """Another row loses tokens, and the longest is given no column more for a last token that is still there."""
    kind, g = FAMILIES[family], torch.Generator()
    tokens = [kind.picture(size, True, g).ids.count(IMAGE) for size in kind.sizes]
    small, large = (tokens.index(n) for n in (min(tokens), max(tokens)))
    rows = ((f"i{large}", 3), (max(tokens) + 9, f"i{small}"))
    exact(Draw(family, (("uniform", {"keep": min(tokens), "layer": 2}),), rows, mode, tail=(3,)))


@pytest.mark.parametrize(
    ("mode", "first", "more"),
    [
        ("assisted", "divprune", {}),
        ("assisted", "fastv", {"dtype": "float16", "attention": "eager"}),
        ("greedy", "tome", {"dtype": "float16", "attention": "eager"}),
        ("no_cache", "pool", {"attention": "eager"}),
        ("turns", "divprune", {"tail": (2, "i0", 3)}),
        ("turns", "tome", {"tail": (4,)}),
        ("beams", "pyramiddrop", {}),
    ],
)
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl", "internvl"])
def test_what_a_prompt_sees_more_is_in_the_reference(family: str, mode: str, first: str, more: dict[str, Any]) -> None:
    """The reference lost it for every draw; it belongs to the columns of a prompt, each prompt by itself."""
    rows = ((3, "i0", 4),) if mode == "assisted" else ((3, "i0", 4), ("i0", 2))
    exact(Draw(family, (("restore", {"keep": 5, "first": first}),), rows, mode, tokens=3, padding=1, **more))
