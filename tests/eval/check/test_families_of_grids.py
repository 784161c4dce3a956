"""vtc check on families that are given pictures as patches with a grid."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version
from versions import known

from vtc.eval.check import check_job
from vtc.eval.check.check_job import CheckOptions, run_check
from vtc.eval.check.contracts import CONTRACTS, PRUNED
from vtc.eval.check.results import EXACT
from vtc.models.layout.families import FAMILIES

TYPES = (
    "glm4v",
    "glm46v",
    "glmga",
    "glm4v_moe",
    "glm_ocr",
    "qwen3_vl_moe",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "cosmos3_omni",
    "cosmos3_edge",
    "cohere_compass",
    "exaone4_5",
    "hyperclovax_vision_v2",
    "minimax_m3_vl",
    "paddleocr_vl",
    "video_llama_3",
    "hunyuan_vl",
    "kimi_k25",
)
IN_THE_TOWER = [kind for family in FAMILIES for kind in family.model_types if not family.no_vision_stage]
# 5.23's own get_video_features of Kimi K2.5 fails on the untouched model
VIDEOS_BROKEN = ("videos",) if Version(transformers.__version__) < Version("5.24") else ()
SHORT = ("keep=1.0, bit for bit", PRUNED, "a row of text", "pictures of other sizes", "videos", "second turn")


@pytest.mark.parametrize("kind", TYPES)
def test_family(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in SHORT})
    stages = ("vision", "input", "decoder") if kind in IN_THE_TOWER else ("input", "decoder")
    result = run_check(CheckOptions(known(kind), ("sdpa",), stages, tokens=3))
    broken = VIDEOS_BROKEN if kind == "kimi_k25" else ()
    assert [o for o in result.outcomes if o.status != EXACT and o.contract not in broken] == []
