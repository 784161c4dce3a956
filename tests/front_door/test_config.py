"""Pipelines and configurations: parsed, never evaluated; saved and loaded without loss."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtc
from vtc.config import CONFIG_NAME, find_config
from vtc.pruners.base import check_keep, resolve_keep


def test_pipeline_strings():
    first, second = vtc.parse("random(keep=0.6, seed=5) + random(layer=2, keep=0.2, seed=5)")
    assert (first.keep, first.seed, first.layer, first.stage) == (0.6, 5, None, "input")
    assert (second.keep, second.layer, second.stage) == (0.2, 2, "decoder")
    assert vtc.parse("dart", keep=64)[0] == vtc.parse("dart(keep=64)")[0]
    assert vtc.parse("random(at=vision, layer=1, keep=3)")[0].stage == "vision"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["random", "uniform", "pool"]),
            st.one_of(st.integers(1, 5000), st.floats(0.001, 1.0)),
            st.one_of(st.none(), st.integers(0, 40)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_format_and_parse_are_inverse(steps):
    pipeline = vtc.parse(" + ".join(f"{n}(keep={k!r}, layer={layer})" for n, k, layer in steps))
    assert vtc.parse(vtc.format_pipeline(pipeline)) == pipeline


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "random(keep=__import__('os'))",
        "random(keep=(lambda: 1)())",
        "random(keep=0.5) if True else dart",
        "random.keep",
        "random(keep=0.5) * 2",
        "random(0.5)",
        "random(**{'keep': 1})",
        "random(keep=0.5, keep=0.6)",
        "random(keep=",
        "",
        "+".join(["random(keep=1)"] * 5) + "+",
        "(" * 500 + "random" + ")" * 500,
    ],
)
def test_nothing_is_evaluated(text):
    with pytest.raises(ValueError, match="pipeline"):
        vtc.parse(text)


@pytest.mark.parametrize(
    ("keep", "error"),
    [
        *((bad, ValueError) for bad in (0, -3, 1.5, 0.0, float("nan"))),
        *((bad, TypeError) for bad in ("x", True, None, [1])),
    ],
)
def test_bad_keep_is_named(keep, error):
    with pytest.raises(error, match="keep"):
        check_keep(keep)


def test_keep_given_twice_or_beside_a_pipeline():
    with pytest.raises(ValueError, match="given twice"):
        vtc.parse("random(keep=3)", keep=4)
    with pytest.raises(ValueError, match="their own parameters"):
        vtc.parse("random(keep=3) + random(layer=2, keep=1)", keep=4)
    with pytest.raises(TypeError, match="must be an instance"):
        vtc.parse(vtc.pruner_class("dart"))
    assert vtc.parse(vtc.pruner_class("dart")(), keep=4)[0].keep == 4


@given(st.floats(1e-6, 1.0), st.integers(1, 10_000))
def test_a_fraction_rounds_half_up_and_keeps_at_least_one(keep, n):
    k = resolve_keep(keep, n)
    assert 1 <= k <= n
    assert k == max(1, int(keep * n + 0.5))


@pytest.mark.parametrize(
    ("keep", "n", "k"), [(1, 576, 1), (1.0, 576, 576), (0.5, 9, 5), (0.05, 576, 29), (700, 576, 576)]
)
def test_one_token_is_not_all_tokens(keep, n, k):
    assert resolve_keep(check_keep(keep), n) == k


def test_config_round_trip(tmp_path):
    config = vtc.VTCConfig(pruner="dart", keep=0.25, params={"layer": 3}, positions="keep")
    config.save_pretrained(tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == [CONFIG_NAME]
    again = vtc.VTCConfig.from_pretrained(tmp_path / "new")
    assert again == config
    assert again.pipeline()[0].layer == 3
    assert again.vtc_version == vtc.__version__


def test_unknown_keys_warn_and_unknown_methods_are_errors(tmp_path):
    path = tmp_path / CONFIG_NAME
    path.write_text(json.dumps({"pruner": "random", "keep": 0.5, "kep": 3}))
    with pytest.warns(UserWarning, match=r"unknown key 'kep'.*'keep'"):
        assert vtc.VTCConfig.from_pretrained(tmp_path).keep == 0.5
    path.write_text(json.dumps({"pruner": "fastvv", "keep": 0.5}))
    with pytest.raises(ValueError, match="'fastv'"):
        vtc.VTCConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({"pruner": "random", "keep": 0.5, "params": {"sed": 1}}))
    with pytest.raises(ValueError, match="'seed'"):
        vtc.VTCConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({"keep": 0.5}))
    with pytest.raises(ValueError, match="needs 'pruner'"):
        vtc.VTCConfig.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        vtc.VTCConfig.from_pretrained(tmp_path)


def test_a_config_file_runs_no_code(tmp_path):
    target = tmp_path / "ran"
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"pruner": f"open({str(target)!r}, 'w')", "keep": 1}))
    with pytest.raises(ValueError, match="must be named"):
        vtc.VTCConfig.from_pretrained(tmp_path)
    assert not target.exists()


def test_find_config(tmp_path):
    assert find_config(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        vtc.VTCConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"pruner": 3}, TypeError, "pruner"),
        ({"pruner": "random", "keep": 0}, ValueError, "keep=0"),
        ({"pruner": "random", "keep": 1, "positions": "best"}, ValueError, "positions"),
        ({"pruner": "random", "keep": 1, "parts": {"lm": 3}}, TypeError, "parts"),
        ({"pruner": "random", "keep": 1, "params": [1]}, TypeError, "params"),
    ],
)
def test_bad_config_values(kwargs, error, match):
    with pytest.raises(error, match=match):
        vtc.VTCConfig(**kwargs)
