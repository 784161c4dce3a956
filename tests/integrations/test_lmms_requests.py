"""Requests of each kind on a compressed backend: batches, several images, log-likelihoods, several turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_world import TOKENS, png, save_model
from lmms_world import requests_of, require_lmms_eval, use_functions, write_pope, write_task
from tiny_qwen import SIDE, save_qwen

require_lmms_eval()

from vtc.integrations.lmms_eval.adapter import VtcChat, VtcSimple  # noqa: E402

FUNCTIONS = """
def text(doc):
    return doc["question"]

def visual(doc):
    return [image.convert("RGB") for image in doc["images"]]
"""
ASK = {"test_split": "test", "doc_to_text": "text", "doc_to_visual": "visual", "doc_to_target": "answer"}
GREEDY = {"max_new_tokens": 4, "do_sample": False}
SIZES = ((2, 2), (3, 2), (2, 4), (3, 3))  # of the pictures, in tokens


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models and tasks."""
    root = tmp_path_factory.mktemp("requests")
    tasks = root / "tasks"
    texts = ("is it red?", "is there a light blue square in the image?", "is it teal?", "is there a circle?")
    sized = [png(i, (w * SIDE, h * SIDE)) for i, (w, h) in enumerate(SIZES)]
    write_pope(tasks, [(picture, text, "yes") for picture, text in zip(sized, texts, strict=True)])
    pictures = [{"bytes": png(i), "path": None} for i in range(6)]
    pairs = [{"question": "same?", "answer": "no", "images": pictures[2 * i : 2 * i + 2]} for i in range(2)]
    path = write_task(tasks, "pairs_local", pairs, output_type="generate_until", generation_kwargs=GREEDY, **ASK)
    use_functions(path, FUNCTIONS, "doc_to_text", "doc_to_visual")
    choices = [
        {"question": f"is it {c}?", "choices": ["yes", "no"], "answer": i % 2, "images": pictures[i : i + 1]}
        for i, c in enumerate(("red", "blue"))
    ]
    listed = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    likely = {"output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": listed}
    path = write_task(tasks, "choices_local", choices, **ASK, **likely)
    use_functions(path, FUNCTIONS, "doc_to_text", "doc_to_visual")
    save_model(root / "llava")
    save_qwen(root / "qwen")
    return root


def backend(world: Path, arguments: str, kind: Any = VtcChat, batch: int = 1) -> Any:
    which = {"llava_hf": "llava", "huggingface": "llava", "qwen2_5_vl": "qwen"}
    base, _, rest = arguments.partition(",")
    text = f"base={base},pretrained={world / which[base]},{rest}"
    return kind.create_from_arg_string(text, {"batch_size": batch, "max_batch_size": None, "device": "cpu"})


def answers_of(world: Path, arguments: str, batch: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts and visual tokens of Qwen2.5-VL's answers, in batches."""
    pixels = f"min_pixels={SIDE**2},max_pixels={100 * SIDE**2}"
    lm = backend(world, f"qwen2_5_vl,{arguments},{pixels}", batch=batch)
    lm.model.float()  # it loads in bfloat16, whose rounding differs from batch to batch
    found = lm.generate_until(requests_of(world / "tasks", lm))
    told = [answer.token_counts.to_dict() for answer in found]
    assert lm.vtc_results.summary()["requests"] == len(found)
    return [answer.text for answer in found], [(t["visual_tokens"], t["visual_tokens_kept"]) for t in told]


def test_batches_give_the_answers_and_counts_of_single_requests(world: Path) -> None:
    """Pictures of several sizes, so that a batch is padded and its rows keep numbers of their own."""
    total = [w * h for w, h in SIZES]
    plain, counts = answers_of(world, "method=none", 1)
    assert counts == [(n, n) for n in total]
    assert answers_of(world, "method=none", 3) == (plain, counts)
    assert answers_of(world, "method=dart,keep=1.0,layer=2", 3) == (plain, counts)
    single = answers_of(world, "method=uniform,keep=3", 1)
    assert single[1] == [(n, 3) for n in total]
    assert single[0] != plain
    assert [answers_of(world, "method=uniform,keep=3", n) for n in (2, 3)] == [single, single]
    assert answers_of(world, "method=uniform,keep=0.5", 4)[1] == [(4, 2), (6, 3), (8, 4), (9, 5)]


def test_a_backend_without_batches_says_so(world: Path) -> None:
    lm = backend(world, "llava_hf,method=uniform,keep=3", batch=2)
    with pytest.raises(AssertionError, match="Do not support batch_size_per_gpu > 1"):
        lm.generate_until(requests_of(world / "tasks", lm))


def test_several_images_keep_their_share_each(world: Path) -> None:
    lm = backend(world, "llava_hf,method=uniform,keep=3,dtype=float32")
    for answer in lm.generate_until(requests_of(world / "tasks", lm, "pairs_local")):
        told = answer.token_counts.to_dict()
        assert (told["visual_tokens"], told["visual_tokens_kept"]) == (2 * TOKENS, 2 * 3)


class Forgiving:
    """A processor that also takes a prompt whose images it saw just before, as it did when llava_hf was written."""

    def __init__(self, processor: Any):
        self._processor = processor

    def __call__(self, images: Any = None, **more: Any) -> Any:
        self._images = images or self._images
        return self._processor(images=self._images, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def likelihoods(world: Path, arguments: str) -> list[tuple[float, bool]]:
    lm = backend(world, f"llava_hf,{arguments},dtype=float32", VtcSimple)
    lm._image_processor = Forgiving(lm._image_processor)
    return lm.loglikelihood(requests_of(world / "tasks", lm, "choices_local"))


def test_log_likelihoods_come_from_the_compressed_model(world: Path) -> None:
    """Its logits stay aligned with the prompt as the backend wrote it."""
    plain = likelihoods(world, "method=none")
    assert len(plain) == 4  # two choices of two questions
    assert len({loss for loss, _ in plain}) == 4
    assert likelihoods(world, "method=uniform,keep=1.0") == plain
    for method in ("uniform", "dart"):
        found = likelihoods(world, f"method={method},keep=2")
        assert all(loss > 0 and loss != other for (loss, _), (other, _) in zip(found, plain, strict=True))


def test_what_a_backend_has_not_stays_its_own_error(world: Path) -> None:
    lm = backend(world, "llava_hf,method=uniform,keep=3")
    with pytest.raises(NotImplementedError, match="multi-round"):
        lm.generate_until_multi_round(requests_of(world / "tasks", lm))


def test_a_model_that_cant_generate_is_refused(world: Path) -> None:
    """lmms-eval's backend `huggingface` loads the model without its head."""
    with pytest.raises(ValueError, match="base 'huggingface' loaded a LlavaModel, which can't generate: use its own"):
        backend(world, "huggingface,method=uniform,keep=3")
