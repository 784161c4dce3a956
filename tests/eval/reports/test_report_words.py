"""The report's words: headline, the cheapest safe setting, notices, numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up_sweeps import one_cell as cell

from vtc.eval.cost.prefill_cost import Cost, Spread
from vtc.eval.reports.html.headline import beaten, cheapest, headline, lede
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.notices import notices, partner_note
from vtc.eval.statistics.intervals import Interval
from vtc.eval.statistics.significance import NO_BASELINE

BETTER, WORSE, NONE = "better than random", "worse than random", "no evidence, needs n >= 900 for 2 points"
ALONE = f"{NO_BASELINE}, the nearest is random 25% (3 seeds)"


@pytest.mark.parametrize(
    ("verdicts", "words_of"),
    [
        ({"a": [BETTER], "b": [BETTER], "c": [BETTER]}, "All 3 methods beat random pruning"),
        ({"a": [BETTER, BETTER], "b": [NONE, WORSE]}, "1 of 2 methods beats random pruning at every budget"),
        ({"a": [BETTER, NONE], "b": [BETTER, BETTER]}, "Both methods beat random pruning at some budgets"),
        ({"a": [NONE], "b": [WORSE]}, "No method is shown to beat random pruning"),
        ({"a": [WORSE], "b": [WORSE]}, "Every method is worse than random pruning"),
        ({"a": [NONE]}, "a is not shown to beat random"),
        ({"a": [""]}, "No method can be judged: this sweep has no random baseline"),
        ({"random": [""]}, "No method can be judged: only random was run"),
        ({"random": [""], "a": [ALONE]}, "No method can be judged: random was not run at their budgets"),
        ({"random": ["", ""], "a": [BETTER, ALONE], "b": [ALONE]}, "a beats random pruning"),
        ({}, "Nothing was pruned in this sweep"),
    ],
)
def test_headlines(verdicts: dict[str, list[str]], words_of: str):
    cells = [cell(m, v, 0.5 / (i + 1)) for m, found in verdicts.items() for i, v in enumerate(found)]
    assert headline(cells) == words_of


def test_who_beats_random_and_where():
    gap = {"against_random": Interval(0.1, 0.05, 0.15)}
    cells = [cell("some", BETTER, 0.5, **gap), cell("some", NONE, 0.25, **gap), cell("no", NONE, **gap)]
    cells += [cell("clear", BETTER, k, against_random=Interval(0.2, 0.1, 0.3)) for k in (0.5, 0.25)]
    cells += [cell("bad", WORSE, against_random=Interval(-0.2, -0.3, -0.1))]
    assert beaten(cells) == "Better than random: clear and some (50%). Worse than random: bad."
    assert beaten(cells[3:5]) == ""  # the headline says it
    assert beaten([cell("a", NONE, **gap)]) == ""


def test_the_cheapest_safe_setting():
    cells = [cell("a", keep=0.5, low=-0.01), cell("b", keep=0.25, low=-0.019), cell("c", keep=0.1, low=-0.03)]
    assert cheapest(cells).method == "b"
    assert cheapest(cells, margin=0.05).method == "c"
    assert cheapest(cells[2:]) is None
    cells[1].complete = False
    assert cheapest(cells).method == "a"
    # nothing differed: of 100 questions that leaves room for 3 points, of 200 for 1.5
    same = {"difference": Interval(0.0, 0.0, 0.0)}
    assert cheapest([cell("d", n=100, **same)]) is None
    assert cheapest([cell("d", n=200, **same)]).method == "d"
    assert lede([cell("d", n=100, **same)]).endswith("but 100 questions would not show a loss of 3.0 points.")
    assert lede([cell("d", n=200, **same)]).startswith("The cheapest setting that stays within 2 points")
    assert lede([cell("d", difference=None)]) == "There is no paired difference to the unpruned model yet."


def test_notices_name_what_limits_the_numbers():
    apart = cell("fastv", ALONE)
    one_seed = cell("random", specs=("random 0.5",))
    found = " ".join(notices([apart, one_seed, cell("late", complete=False)], 12))
    for part in ("1 of 3 lines are unfinished", "1 seed", "1 of 3 lines (fastv) are not judged", "only 12 images",
                 "unpruned model was not run", "FLOPs were not counted and times were not measured."):  # fmt: skip
        assert part in found
    shaky = cell("dart", cost=Cost(prefill=Spread(0.1, 0.08, 0.14)))
    steady = cell("pool", cost=Cost(prefill=Spread(1, 1, 1)))
    assert "rough: in 1 of 2 lines" in " ".join(notices([shaky, steady], 50))
    three = cell("random", specs=("a", "b", "c"), lm_flops_ratio=0.5)
    assert "seed" not in " ".join(notices([three], 500))


def test_a_random_cell_of_another_keep_is_named():
    against = "random(layer=2, at=decoder) 44% (3 seeds), 252 tokens per layer to 250"
    said = "against random(layer=2, at=decoder) 44% (3 seeds)"
    assert partner_note(cell("dart", BETTER, 0.25, against=against)) == said
    assert partner_note(cell("dart", BETTER, 0.44, against=against)) == ""
    assert partner_note(replace(cell("prumerge", BETTER, against=against), keep=None)) == said
    assert partner_note(cell("dart", "")) == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (words.signed(-0.04), "0.0"), (words.signed(-0.06), "−0.1"), (words.p_value(0.00001), "<0.001"),
        (words.p_value(0.0123), "0.012"), (words.p_value(0.4321), "0.43"), (words.p_value(None), "–"),
        (words.rank(Interval(2, 1, 3.5)), "2 [1–3.5]"), (words.rank(Interval(1, 1, 1)), "1"),
        (words.listed(["a"]), "a"), (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.listed(list("abcdef")), "a, b, c, d and 2 more"), (words.count(14815.2), "14,815"),
        (words.flops(48_768), "48.8 k"), (words.flops(227_000_000), "227 M"), (words.flops(8.7123e12), "8.71 T"),
        (words.flops(999_999), "1.00 M"), (words.milliseconds(0.00042), "0.42"), (words.milliseconds(1.2042), "1,204"),
        (words.spread(Spread(0.013, 0.0119, 0.014)), "[11.9–14.0]"), (words.places(Interval(1, 1, 1)), ""),
        (words.short("prumerge(alpha=0.1)", 12), "prumerge(al…"), (words.percent(float("nan")), "–"),
    ],
)  # fmt: skip
def test_numbers_in_words(text: str, wanted: str):
    assert text == wanted
