"""Which methods a server offers, and what a request may make of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from vtc.pipeline_text import parse
from vtc.pruners.registry import list_pruners, pruner_class
from vtc.serve.requests.pruning_choice import Allowed, Choice
from vtc.serve.requests.refusal import Refusal

OFFER = Allowed.read("dart", 0.25, ["random", "random(layer=2)", "explainer(...)", "unpruned"], 0.1, 0.5)


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (None, "dart(keep=0.25)"),
        ({}, "dart(keep=0.25)"),
        ({"keep": 0.5}, "dart(keep=0.5)"),
        ({"keep": None}, "dart(keep=0.25)"),
        ({"pruner": "dart", "keep": 0.1}, "dart(keep=0.1)"),
        ({"pruner": "dart(keep=0.3)"}, "dart(keep=0.3)"),
        ({"pruner": "dart()"}, "dart(keep=0.25)"),
        ({"pruner": "random"}, "random(keep=0.25)"),
        ({"pruner": "random( layer = 2 )", "keep": 0.2}, "random(keep=0.2, layer=2)"),
        ({"pruner": None}, "unpruned"),
        ({"pruner": "unpruned"}, "unpruned"),
        ({"pruner": "explainer", "keep": 0.2}, "explainer(keep=0.2)"),
    ],
)
def test_what_is_chosen(given: Any, spec: str) -> None:
    assert OFFER.choose(given).spec == spec


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keep": 0.51}, "at most 0.5"),
        ({"keep": 0.09}, "at least 0.1"),
        ({"keep": 64}, "keep must be a fraction on this server"),
        ({"keep": True}, "got True"),
        ({"keep": float("inf")}, "out of range"),
        ({"pruner": "dart(keep=0.9)"}, "at most 0.5"),
        ({"pruner": "dart(layer=2, official=True)"}, "not offered"),
        ({"pruner": "random(layer=3)"}, "not offered"),
        ({"pruner": "random + random(layer=2)"}, "not offered"),
        ({"pruner": "dart(keep=0.2)", "keep": 0.2}, "can't be read"),
        ({"pruner": "dart + dart(layer=3)"}, "not offered"),
        ({"pruner": 3}, "must be a string"),
        ({"pruner": "explainer(weights='a.pt', keep=0.2)"}, "not offered"),
        ({"pruner": "explainer(weights=somewhere, keep=0.2)"}, "not offered"),
    ],
)
def test_what_is_not(given: Any, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        OFFER.choose(given)
    assert refused.value.status == 400


TEXTS = [(n, f.name) for n in list_pruners() for f in fields(pruner_class(n)) if "str" in str(f.type)]


@pytest.mark.parametrize(("name", "field"), TEXTS)
def test_a_text_of_the_client_s_never_reaches_a_method(
    name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # which may open it as a file, some as soon as they are built
    allowed = Allowed.read(None, None, [f"{name}(...)"])

    def built(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was built")

    monkeypatch.setattr("vtc.serve.requests.pruning_choice.parse", built)
    for value in ("'/etc/hostname'", "word", "['a']", "(1, ('a',))", "b'a'"):
        with pytest.raises(Refusal, match="not offered"):
            allowed.choose({"pruner": f"{name}({field}={value})", "keep": 0.5})


def test_a_text_that_the_server_offers_may_be_asked_for() -> None:
    allowed = Allowed.read(None, None, ["deep_random(first='random')"])
    for text in ("deep_random(first='random')", "deep_random(first=random)", "deep_random(first=random, keep=0.5)"):
        assert allowed.choose({"pruner": text, **({} if "keep" in text else {"keep": 0.5})}).keep == 0.5
    with pytest.raises(Refusal, match="not offered"):
        allowed.choose({"pruner": "deep_random(first='divprune')", "keep": 0.5})


def test_the_answer_to_an_unknown_method_lists_what_is_offered_and_no_more() -> None:
    with pytest.raises(Refusal) as refused:
        OFFER.choose({"pruner": "dort"})
    assert refused.value.message == (
        "vtc.pruner 'dort' is not offered here. Offered are: dart, random, random(layer=2), explainer(...), null "
        "(unpruned); keep from 0.1 up to 0.5."
    )


def test_without_a_method_keep_has_to_name_one() -> None:
    allowed = Allowed.read(None, None, ["random", "unpruned"])
    assert allowed.choose(None) == Choice()
    with pytest.raises(Refusal, match=r"needs vtc\.pruner"):
        allowed.choose({"keep": 64})
    with pytest.raises(Refusal, match=r"needs vtc\.keep"):
        allowed.choose({"pruner": "random"})
    assert allowed.choose({"pruner": "random", "keep": 64}) == Choice("random(keep=64)", "random", 64)


def test_a_pipeline_as_default_says_its_keeps() -> None:
    allowed = Allowed.read("random(keep=0.5) + random(layer=2, keep=0.2)", None, [], None, 0.5)
    assert allowed.choose({}).keep is None
    with pytest.raises(Refusal, match="says itself what it keeps"):
        allowed.choose({"keep": 0.3})
    assert parse(allowed.default.spec)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("dart", 0.9, [], None, 0.5), "--keep 0.9: keep=0.9 is out of this server's range"),
        (("dart", 64, [], 8, 0.5), "must be both tokens or both fractions"),
        (("dart", 64, [], 80, 70), "in order"),
        (("dart", 64, ["dort"]), "Did you mean 'dart'"),
        (("dart", 64, ["dart(pivot=2)"]), "no parameter 'pivot'"),
    ],
)
def test_options_that_do_not_fit(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Allowed.read(*given)
