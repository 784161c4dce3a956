"""The plugin in real engines, on CPU: greedy tokens are those of transformers and vtc, whatever is cached or batched.

Engines start once a family, with a prefill budget smaller than a picture, so that every prompt comes in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import masked
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM, which .ci/vllm installs into an environment of its own")

from vllm_checkpoints import CHECKPOINTS
from vllm_engines import KEEP, TOKENS, A, Answer, B, C, Engine, engine, picture

import vtc
from vtc.integrations.vllm import worker

# what a method needs on the tiny checkpoints beside keep=0.4
NEEDS = {
    "embedlens": "embedlens(sink=(5, 6, 7), dead=(20, 21, 22, 23))",
    "quecc": "quecc(keep=16, kernel=2, no_text=True, weights=untrained)",
    "tokenflex": "tokenflex(weights=untrained)",
}


def _registered() -> Iterator[str]:
    """Every method that runs in an engine as it is: at the input alone, keeping a fixed number, and nothing more."""
    for name in vtc.list_pruners():
        pruner = vtc.pruner_class(name)(keep=KEEP)
        stages = {s.stage for s in pruner.stops(8)}
        if stages == {"input"} and not pruner.adaptive_count and not pruner.calibrates:
            yield NEEDS.get(name, name)


# every method of the input stage on one family, one of each kind on the others
EVERY = [*_registered(), "zero_tprune(at=input)", "uniform(keep=0.8) + divprune(keep=0.5)"]
KINDS = ["divprune", "hired", "cdpruner", "pool", "zoo_prune"]
LACKING = {"glm4v": ("zoo_prune",)}
# what has nothing to do with a family is tried on one for each kind of positions, and on a sparse model with DeepStack
THOROUGH = ("llava", "qwen2_5_vl", "qwen3_vl_moe")
# its seeds go by the place of a picture in its prompt, which an entry of a cache does not know
BY_PLACE = ("random",)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    family = request.param
    choices = EVERY if family == "llava" else [k for k in KINDS if k not in LACKING.get(family, ())]
    folder: Path = tmp_path_factory.mktemp(family) / family
    with engine(family, folder, choices) as found:
        yield found


@pytest.fixture
def thorough(run: Engine) -> Engine:
    if run.family not in THOROUGH:
        pytest.skip(f"tried on {', '.join(THOROUGH)}")
    return run


def _keep(method: str) -> Any:
    return None if "keep=" in method else KEEP


def test_tokens_are_those_of_transformers_cached_or_not(run: Engine) -> None:
    for method in run.choices:
        cases = [(run.one, [A]), (run.one, [B]), (run.two, [A, C])]
        for prompt, images in cases[: 2 if method in BY_PLACE else 3]:
            expected = run.expected(prompt, images, method, _keep(method))
            request = run.request(prompt, images, vtc_pruner=method)
            (first,), (again,) = run.ask(request), run.ask(request)
            assert first == expected, (method, len(images))
            assert again == expected, (method, len(images))
            assert again.cached >= again.length // 32 * 32 - 32


def test_pictures_of_internvl_are_several_tiles(run: Engine) -> None:
    if run.family != "internvl":
        pytest.skip("of InternVL")
    for image, tiles in ((A, 5), (B, 5), (C, 3)):  # the whole picture among them: what the tests above and below ask
        assert len(run.inputs(run.one, [image])["pixel_values"]) == tiles


def test_a_batch_of_all_kinds_is_answered_as_each_alone(run: Engine) -> None:
    method = run.choices[0]
    requests = [
        run.request(run.two, [B, A], vtc_pruner=method),
        run.request("user: please answer yes or no assistant:"),
        run.request(run.one, [C], vtc_pruner=method, vtc_keep=3),
        run.request(run.one, [A], vtc_pruner=method),
    ]
    alone = [run.ask(r)[0] for r in requests]
    run.forget()
    assert run.ask(*requests) == alone
    assert run.ask(*requests) == alone
    assert alone[0] == run.expected(run.two, [B, A], method)
    assert alone[2] == run.expected(run.one, [C], method, 3)


def test_a_request_says_its_own_keep_and_the_next_has_the_servers_again(thorough: Engine) -> None:
    method = "divprune"
    for keep in (5, 1.0, 0.7, KEEP):
        (found,) = thorough.ask(thorough.request(thorough.one, [A], vtc_pruner=method, vtc_keep=keep))
        assert found == thorough.expected(thorough.one, [A], method, keep), keep
    (found,) = thorough.ask(thorough.request(thorough.one, [A], vtc_pruner=method))
    assert found == thorough.expected(thorough.one, [A], method)


def test_pictures_encoded_again_keep_what_they_kept(thorough: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = thorough.request(thorough.two, [B, C], vtc_pruner="divprune")
    (before,) = thorough.ask(request)

    def never(*_: Any) -> Any:
        raise AssertionError("chosen a second time")

    thorough.forget()
    encoded = _spied(thorough, monkeypatch)
    monkeypatch.setattr(worker, "select", never)
    (after,) = thorough.ask(request)
    assert after == before
    assert after.cached == 0
    assert sum(map(len, encoded)) == 2


def test_the_tower_never_runs_more_whole_tokens_than_its_budget(
    thorough: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _spied(thorough, monkeypatch)
    thorough.forget()
    images = [picture(10 + i, 112, 112) for i in range(3)]
    prompt = thorough.words("user: ", "i", "i", "i", "what is the colour assistant:")
    thorough.ask(thorough.request(prompt, images, vtc_pruner="divprune", vtc_keep=2))
    limit = thorough.model.__dict__["pruning"].limit
    assert sum(map(len, encoded)) == 3
    assert all(len(call) == 1 or sum(call) <= limit for call in encoded)


def _spied(run: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens before pruning of the pictures of each call of the tower from now on."""
    pruning, found = run.model.__dict__["pruning"], []
    stock = pruning.encode

    def encode(go: Any, given: Any, items: Any) -> Any:
        found.append([sum(item.lengths) for item in items])
        return stock(go, given, items)

    monkeypatch.setattr(pruning, "encode", encode)
    return found


def test_bad_requests_are_refused_and_the_engine_goes_on(thorough: Engine) -> None:
    for ours, words in (
        ({"vtc_kep": 3}, "Did you mean 'vtc_keep'"),
        ({"vtc_keep": 0}, "out of range"),
        ({"vtc_pruner": "fastv"}, "is not offered"),
    ):
        with pytest.raises(ValueError, match=words):
            thorough.ask(thorough.request(thorough.one, [A], **ours))
    if thorough.family not in ("internvl", "gemma3"):  # marks of theirs follow a picture
        bare = thorough.words("user: ", "i").removesuffix("<|vision_end|>").removesuffix("<|end_of_image|>")
        with pytest.raises(ValueError, match="ends in a picture"):
            thorough.ask(thorough.request(bare, [A]))
    assert thorough.ask(thorough.request(thorough.one, [A]))[0].length > 0


def test_a_question_of_its_own_shares_entries_between_prompts(
    thorough: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _spied(thorough, monkeypatch)
    other = thorough.words("user: ", "i", "please answer yes or no assistant:")
    ours = {"vtc_pruner": "cdpruner", "vtc_question": "what is the colour"}
    image = picture(20, 112, 112)
    first, second = (
        thorough.ask(thorough.request(thorough.one, [image], **ours))[0],
        thorough.ask(thorough.request(other, [image], **ours))[0],
    )
    assert sum(map(len, encoded)) == 1
    assert first.length - second.length == len(thorough.processor.tokenizer(thorough.one).input_ids) - len(
        thorough.processor.tokenizer(other).input_ids
    )


def test_videos_stay_whole_beside_pruned_pictures(run: Engine) -> None:
    if not run.family.startswith("qwen"):
        pytest.skip("a family with pictures and videos in one prompt")
    frames = np.stack([np.array(picture(30 + i, 112, 112)) for i in range(4)])
    fps = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 2.0, "video_backend": "none"}
    prompt = run.words("user: ", "v", "please ", "i", "what is the colour assistant:")
    data = {"image": [A], "video": [(frames, fps)]}
    request = {"prompt": prompt, "multi_modal_data": data, "mm_processor_kwargs": {"vtc_pruner": "divprune"}}
    (first,), (again,) = run.ask(request), run.ask(request)
    assert again == first
    assert first == _reference(run, prompt, [A], frames, fps)


def _reference(run: Engine, prompt: str, images: list[Any], video: Any, fps: dict[str, Any]) -> Answer:
    """Greedy tokens of the whole prompt with the pruned pictures' tokens hidden by masks, and nothing of the plugin."""
    with vtc.compressed(run.stock, "divprune", keep=KEEP) as model, torch.no_grad():
        model(**run.inputs(run.one, images))
        (kept,) = model.vtc.report.steps[-1].kept
    inputs = run.inputs(prompt, images, videos=[video], video_metadata=[fps], do_sample_frames=False)
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    places = (ids[0] == run.stock.config.image_token_id).nonzero()[:, 0]
    gone = places[~torch.isin(torch.arange(len(places)), kept)]
    depth, length, tokens = run.stock.config.get_text_config().num_hidden_layers, ids.shape[1], []
    kinds: Tensor | None = inputs.pop("mm_token_type_ids", None)
    for _ in range(TOKENS):
        hidden = torch.zeros(depth, 1, ids.shape[1], dtype=torch.bool)
        hidden[:, :, gone] = True
        more = {} if kinds is None else {"mm_token_type_ids": kinds}
        with masked(run.stock, hidden, torch.ones_like(ids, dtype=torch.bool)), torch.no_grad():
            logits = run.stock(input_ids=ids, **inputs, **more, use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], 1)
        kinds = None if kinds is None else torch.nn.functional.pad(kinds, (0, 1))
    return Answer(length - len(gone), tokens)
