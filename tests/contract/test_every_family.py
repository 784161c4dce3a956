"""Every method on every family that ``vtc check`` builds: exact, or refused in words before anything is dropped.

Methods x families are many: a run of the tests takes a share of them (``sampling``), and ``--full`` all.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import sampling
from methods import METHODS, Setting
from places import ROOT
from versions import known

import vtc
from vtc.eval.check.check_job import ATTENTIONS, small_model
from vtc.eval.check.contracts import CONTRACTS, PRUNED, NothingToSee
from vtc.eval.check.masked_reference import Uncheckable
from vtc.eval.check.model_under_test import Setting as CheckSetting
from vtc.eval.check.model_under_test import Subject
from vtc.eval.check.tiny_model.build import with_attention
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.layout.model_parts import locate

pytestmark = pytest.mark.usefixtures("no_grad")
TOKENS = 3


@lru_cache(maxsize=1)
def subject_of(kind: str) -> Subject:
    """A tiny model of the default configuration of a type, and what it does untouched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, prompts, _ = small_model(config_of(kind))
        other = with_attention(model, ATTENTIONS["sdpa"])
        return Subject("sdpa", locate(other), locate(model), prompts, TOKENS)


@pytest.mark.parametrize(("setting", "kind"), sampling.of_all_types(METHODS))
def test_a_method_is_exact_or_refused(setting: Setting, kind: str) -> None:
    subject = subject_of(known(kind))
    asked = CheckSetting(str(setting), vtc.parse(setting.pruner, keep=setting.keep, **setting.params))
    refused = ""
    try:
        CONTRACTS[PRUNED](subject, asked)
    except NotImplementedError as error:
        refused = str(error)
    except (NothingToSee, Uncheckable) as nothing:
        pytest.skip(str(nothing))
    assert len(refused.splitlines()) <= 1
    assert not hasattr(subject.model, "vtc")  # it is as it was


def test_a_week_of_runs_takes_every_pair_and_a_run_a_share() -> None:
    for shares, families in ((sampling.OF_ZOO, sampling.FAMILIES), (sampling.OF_TYPES, sampling.TYPES)):
        runs = [
            {(s, f) for s in METHODS for f in families if sampling.taken(s, f, run, shares)}
            for run in range(20786, 20786 + shares)
        ]
        assert shares <= 7
        assert set.union(*runs) == {(s, f) for s in METHODS for f in families}
        assert sum(map(len, runs)) == len(METHODS) * len(families)
        assert {s for s, _ in runs[0]} == set(METHODS)
        assert {f for _, f in runs[0]} == set(families)


def test_long_files_are_there() -> None:
    assert [name for name in sampling.LONG if not (ROOT / name).is_file()] == []


def test_a_test_with_a_share_has_all_its_parameters_taken_in_turn() -> None:
    def item(name: str, *marks: Any) -> Any:
        return SimpleNamespace(
            path=name[:4], originalname=name[:4], name=name, get_closest_marker=lambda _: next(iter(marks), None)
        )

    items = [*(item(f"long{i}", pytest.mark.share(3).mark) for i in range(7)), item("short")]
    runs = [sampling.split(items, run)[0] for run in range(20786, 20789)]
    assert sorted(map(len, runs)) == [3, 3, 4]  # one of each is what has no share
    assert {one.name for run in runs for one in run} == {one.name for one in items}
    assert all(items[-1] in run for run in runs)
