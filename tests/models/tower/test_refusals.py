"""What can't be pruned inside its tower says so when it is wrapped."""

from __future__ import annotations

import pytest
from methods import NO_VISION_STAGE
from vision_tools import Norm, ready

from vtc.models.layout.model_parts import locate
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Merged, Stop
from vtc.pruners.visual_tokens import VisualTokens


@pytest.mark.parametrize("name", NO_VISION_STAGE)
def test_families_that_cannot_say_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match=r"norm.*(tower|class).*use the input stage"):
        VisionSide(locate(ready(name)), [(Norm(keep=3), Stop("vision", 1, 3))])


def test_refused_layers_and_methods() -> None:
    parts = locate(ready("llava"))  # four layers, of which the projector reads the third's output
    for layer in (3, 7, -5):
        with pytest.raises(ValueError, match=rf"layer={layer} is out of range.*0 to 2"):
            VisionSide(parts, [(Norm(keep=3), Stop("vision", layer, 3))])
    with pytest.raises(ValueError, match="needs a layer"):
        VisionSide(parts, [(Norm(keep=3), Stop("vision", None, 3))])
    assert list(VisionSide(parts, [(Norm(keep=3), Stop("vision", -2, 3))]).stops) == [2]

    class Merging(Norm):
        merges = True

        def select(self, tokens: VisualTokens, k: int) -> Merged:
            return Merged(tokens.ids[:, :k], tokens.features[:, :k])

    assert list(VisionSide(parts, [(Merging(keep=3), Stop("vision", 1, 3))]).stops) == [1]
    for name in ("gemma3", "qwen2_5_vl"):
        with pytest.raises(NotImplementedError, match=r"merges tokens.*one patch a token.*input stage"):
            VisionSide(locate(ready(name)), [(Merging(keep=3), Stop("vision", 1, 3))])
    parts.config.vision_feature_select_strategy = "full"
    with pytest.raises(NotImplementedError, match="class token"):
        VisionSide(parts, [(Norm(keep=3), Stop("vision", 1, 3))])
