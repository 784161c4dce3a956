"""What vtc says about its methods: true of the instance shown, the same as the host does, and in docs/methods.md."""

from __future__ import annotations

import io
import json
import re

import pytest
from methods import METHODS, PIPELINES, Setting, fits
from places import ROOT
from rich.console import Console
from versions import PRUNES_DINOV2
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.eval.reports.method_list import FLAGS, describe, listing, methods_table
from vtc.models.layout.families import family_of
from vtc.models.layout.model_parts import locate
from vtc.models.method_support import support, why_not
from vtc.models.tower.refusals import prefix_tokens

PAGE = ROOT / "docs" / "methods.md"
IN_THE_TOWER = [Setting("tome(at=vision)", 0.4), Setting("random(at=vision, layer=2)", 0.4)]
TOWERS = {
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "SigLIP",
    "pixtral": "Pixtral",
    "dinov2": "DINOv2",
}
FLAG_CASES = {
    "dart": {"adaptive_count": False, "uses_text": True, "uses_attention": False},
    "dart(official=True)": {"adaptive_count": True},
    "deep_random": {"uses_attention": False, "merges": False},
    "deep_random(first=fastv)": {"uses_attention": True, "uses_text": True, "uses_cls": False},
    "deep_random(first=visionzip)": {"uses_cls": True, "merges": True, "projects": True},
    "deep_random(first=globalcom2)": {"joins_crops": True, "uses_cls": True},
    "visionzip(merge=projected)": {"projects": False},
    "embedlens": {"adaptive_count": False, "reads_vocabulary": True},
    "embedlens(classes='c.json')": {"reads_vocabulary": False},
    "flowcut": {"uses_text": False, "uses_cls": True},
    "flowcut(layer=2)": {"uses_text": True},
    "idpruner(importance=norm)": {"uses_attention": False, "uses_cls": False},
    "todre_diversity(pivot=random)": {"uses_attention": False, "uses_cls": False},
    "sparsevlm(rank_scale=0.5)": {"adaptive_count": True, "merges": True},
    "cdpruner(text_encoder='somewhere')": {"uses_question": True},
    "priortr": {"uses_text": True, "uses_attention": True, "uses_cls": False},
    "hiprune": {"order_dependent": True, "uses_attention": True, "uses_cls": False, "uses_text": False},
    "fsr": {"merges": True, "uses_cls": True, "uses_text": False, "uses_question": False},
    "fsr(text_encoder='somewhere')": {"uses_text": True, "uses_question": True},
    "nuwa": {"merges": True, "projects": True, "order_dependent": True, "uses_cls": True, "uses_text": True},
    "nuwa(tail=1, merge=projected)": {"projects": False, "uses_text": False},
    "prunevid": {"merges": True, "order_dependent": True, "uses_attention": True, "uses_text": True},
    "prunevid(tail=1)": {"uses_attention": False, "uses_text": False},
    "prumerge_plus": {"order_dependent": True, "uses_cls": True},
    "pool": {"merges": True, "ragged": True},
}
STAGES = {
    "dart": ["decoder"],
    "todre": ["input", "decoder"],
    "flowcut": ["vision"],
    "flowcut(layer=2)": ["vision", "decoder"],
    "tome(at=vision)": ["vision"],
    "deep_random": ["input", "decoder"],
    "deep_random(first=dart)": ["decoder"],
    "vscan(ratio=1)": ["input"],
    "nuwa": ["input", "decoder"],
    "nuwa(tail=1)": ["input"],
    "vtw": ["decoder"],
}


def tower_of(family: str) -> object:
    """The row of the families' table for the tower that a tiny model has."""
    config = tiny(family).config
    name = TOWERS.get(config.vision_config.model_type)
    towers = family_of(config).towers
    found = next((tower for tower in towers if tower.name == name), towers[0])
    return found._replace(prunable=found.prunable and (PRUNES_DINOV2 or found.name != "DINOv2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_method_runs_is_what_the_contract_tests_run(family):
    """Their rules are written down by hand, and every method that fits runs there."""
    row, tower = family_of(tiny(family).config), tower_of(family)
    for setting in METHODS + PIPELINES:
        pipeline = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
        reasons = [why_not(pruner, row, tower) for pruner in pipeline]
        assert any(reasons) != fits(setting, family), f"{setting} on {family}: {reasons}"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_not_to_run_is_refused(family):
    model, inputs = tiny(family), prompt(family, "one").inputs
    row, tower = family_of(model.config), tower_of(family)
    for setting in METHODS + IN_THE_TOWER:
        (pruner,) = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
        if why_not(pruner, row, tower):
            with pytest.raises(NotImplementedError), vtc.compressed(model, pruner):
                model(**inputs)
        elif setting in IN_THE_TOWER:
            with vtc.compressed(model, pruner):
                model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_towers_of_the_table_are_what_the_models_have(family):
    parts, tower = locate(tiny(family)), tower_of(family)
    assert tower.class_token == bool(prefix_tokens(parts.tower))
    assert tower.name == TOWERS.get(parts.tower.config.model_type, tower.name)
    if parts.family.one_patch:
        assert parts.family.unit(parts.config) == 1


def test_families_in_words():
    def words(spec: str) -> str:
        return str(support(vtc.parse(spec)))

    assert words("dart(keep=0.5)") == "all"
    assert words("visionzip(keep=0.5)") == "all but LLaVA-OneVision"
    assert words("visionzip(merge=projected, keep=0.5)") == "all"
    assert words("prumerge(keep=0.5)") == (
        "with a class token: LLaVA-1.5 (CLIP, DINOv2), ViP-LLaVA, LLaVA-NeXT, LLaVA-NeXT-Video, InternVL, Qianfan-OCR"
    )
    assert words("tome(at=vision, keep=0.5)") == (
        "LLaVA-1.5 (CLIP, SigLIP, DINOv2), ViP-LLaVA, PaliGemma, DeepSeek-VL, Janus, LLaVA-NeXT"
    )
    found = support(vtc.parse("prumerge(keep=0.5)"))
    assert found.reasons["LLaVA-1.5 (SigLIP, Pixtral)"] == "its vision tower has no class token"
    # a pipeline runs where all of its methods do
    both = support(vtc.parse("random(at=vision, layer=2, keep=0.5) + prumerge(keep=0.2)"))
    assert both.runs == ("LLaVA-1.5 (CLIP, DINOv2)", "ViP-LLaVA", "LLaVA-NeXT", "Qianfan-OCR")


@pytest.mark.parametrize("spec", FLAG_CASES)
def test_flags_are_those_of_the_instance(spec):
    (row,) = describe(spec) if "(" in spec else [r for r in describe(spec) if r["name"] == spec]
    assert {flag: row[flag] for flag in FLAG_CASES[spec]} == FLAG_CASES[spec]


@pytest.mark.parametrize("spec", STAGES)
def test_stages_are_those_of_the_instance(spec):
    assert describe(spec)[0]["stages"] == STAGES[spec]


def test_stages_on_request():
    other = {row["name"]: row["other_stages"] for row in describe()}
    assert other["random"] == other["tome"] == ["vision", "decoder"]
    assert other["uniform"] == ["decoder"]
    assert other["dart"] == other["divprune"] == []


def test_a_pipeline_is_described_method_by_method():
    rows = describe("uniform(keep=0.8) + dart(layer=3, keep=0.2)")
    assert [(row["name"], row["parameters"].get("layer")) for row in rows] == [("uniform", None), ("dart", 3)]
    assert rows[1]["spec"] == "dart(keep=0.2, layer=3)"


def test_every_method_is_described_in_full():
    rows = describe()
    assert [row["name"] for row in rows] == vtc.list_pruners()
    json.dumps(rows)
    for row in rows:
        assert all(isinstance(row[flag], bool) for flag in FLAGS)
        assert row["stages"]
        assert row["families"]
        assert row["summary"]
        # what a method does, without its name, its authors and its number in front
        assert not re.search(r"arXiv|et al\.|: ", row["summary"]), row["summary"]
        assert bool(row["signals"]) == bool(row["needs"]) or row["projects"] or row["reads_vocabulary"]


@pytest.mark.parametrize("name", vtc.list_pruners())
def test_what_reads_text_says_so(name):
    (row,) = [row for row in describe(name) if row["name"] == name]
    if any(word in signal for signal in row["signals"] for word in ("TextEmbeddings", "DecoderAttention", "Ahead")):
        assert row["uses_text"]


def test_the_readme_has_the_table():
    found = re.search(r"(?s)<!-- methods -->\n(.*?)\n\n<!-- /methods -->", PAGE.read_text())
    assert found, "the page has lost its table"
    assert found[1] == methods_table(describe()), "out of date: run python benchmarks/methods_table.py"


def test_the_screen_s_table_is_readable_at_100_columns():
    out = io.StringIO()
    Console(width=100, file=out).print(listing(describe()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in out.getvalue()
    for name in vtc.list_pruners():
        assert any(re.search(rf"│ {name} +│", line) for line in lines), name
