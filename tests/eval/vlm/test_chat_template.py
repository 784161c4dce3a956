"""What the harness feeds a model is what its processor's chat template makes of the same messages, in every family."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from chat_inputs import picture, processor_of
from PIL import Image
from processors import PROCESSORS, WITH_TIMES, WITH_VIDEO
from torch import Tensor
from zoo import FAMILIES as ZOO
from zoo import tiny
from zoo.tokens import BOS, IMAGE

from vtc.eval.sweep.answer import answer_plain
from vtc.eval.tasks.media.frames import ASSUMED_FPS, Frames
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.encode_once import encode, reuses_encoder
from vtc.eval.vlm.prompts import make_row, media_form, prompt_template, takes_video
from vtc.models.layout.families import FAMILIES

TEXT = "What differs?"
SIZES = {"none": (), "one": ((50, 40),), "several": ((50, 40), (30, 56), (28, 28))}
CASES = [(name, shape) for name in PROCESSORS for shape in (*SIZES, "video") if shape != "video" or name in WITH_VIDEO]


def minute(count: int = 8) -> Frames:
    """Frames that lie evenly in a film of 60 seconds at 24 frames per second."""
    pictures = [picture((48, 32), i) for i in range(count)]
    step = 1440 // count
    return Frames.of(pictures, [step // 2 + step * i for i in range(count)], 1440, 24.0)


def visuals_of(shape: str) -> Sequence[Image.Image]:
    return minute() if shape == "video" else [picture(size, i) for i, size in enumerate(SIZES[shape])]


def question(kind: str = "image") -> Question:
    return Question("q", "t", "i", TEXT, "", kind=kind)


def row_of(name: str, shape: str, visuals: Sequence[Image.Image] | None = None) -> Any:
    given = visuals_of(shape) if visuals is None else visuals
    kind = "video" if shape == "video" else "image"
    return make_row(processor_of(name), tiny(name).config, given, question(kind))


def stock(name: str, shape: str) -> dict[str, Any]:
    """What transformers itself makes of the question."""
    visuals = visuals_of(shape)
    content: list[dict[str, Any]] = [{"type": "image", "image": p} for p in visuals]
    more: dict[str, Any] = {}
    if isinstance(visuals, Frames):
        content = [{"type": "video", "video": np.stack([np.asarray(p) for p in visuals])}]
        known = {"total_num_frames": 1440, "fps": 24.0, "duration": 60.0, "frames_indices": list(visuals.indices)}
        more = {"processor_kwargs": {"video_metadata": [known], "do_sample_frames": False, "return_tensors": "pt"}}
    content.append({"type": "text", "text": TEXT})
    return dict(
        processor_of(name).apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", **more,
        )
    )  # fmt: skip


def text_of(name: str, ids: Tensor) -> str:
    return str(processor_of(name).tokenizer.decode(ids))


def test_every_family_has_a_processor_here() -> None:
    types = {tiny(name).config.model_type for name in PROCESSORS}
    assert types == {family.model_types[0] for family in FAMILIES} & set(ZOO)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_inputs_are_those_of_the_chat_template(name: str, shape: str) -> None:
    row, want = row_of(name, shape), stock(name, shape)
    got = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}, **row.vision}
    assert got.keys() == want.keys()
    for key, value in want.items():
        same = torch.equal(got[key], value) if isinstance(value, Tensor) else got[key] == value
        assert same, key
    ids = row.ids.tolist()
    assert ids.count(BOS) == (0 if processor_of(name).tokenizer.bos_token is None else 1)
    assert TEXT in text_of(name, row.ids)
    assert text_of(name, row.ids).lower().endswith("assistant:")
    assert (row.visual == 0) == (shape == "none") == (row.prefix == 0)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_model_takes_them(name: str, shape: str) -> None:
    """Also where its tower has run before: the answer is that of the stock model on the template's inputs."""
    model, processor, row = tiny(name), processor_of(name), row_of(name, shape)
    inputs = stock(name, shape)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    want = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    assert answer_plain(model, processor, [row], None, 6)[0].text == want
    if reuses_encoder(model) and shape != "none":
        assert answer_plain(model, processor, [row, row], [encode(model, row)] * 2, 6)[1].text == want


def test_several_pictures_are_one_sample() -> None:
    """OneVision cuts a picture into tiles only where it is a sample's only one."""
    row = row_of("llava_onevision", "several")
    assert row.vision["batch_num_images"].tolist() == [3]
    assert row.visual == 3 * (16 + 1)
    alone = row_of("llava_onevision", "one")
    assert alone.visual > 2 * 17
    for name in PROCESSORS:
        each = [make_row(processor_of(name), tiny(name).config, p, question()).visual for p in visuals_of("several")]
        if name != "llava_onevision":
            assert row_of(name, "several").visual == sum(each), name


@pytest.mark.parametrize("name", WITH_TIMES)
def test_frames_reach_the_model_with_their_times(name: str) -> None:
    row = row_of(name, "video")
    if name == "qwen3_vl":  # of two frames each
        assert re.findall(r"<([\d.]+) seconds>", text_of(name, row.ids)) == ["7.5", "22.5", "37.5", "52.5"]
    elif name == "smolvlm":
        want = [f"00:{second:02d}" for second in (3, 11, 18, 26, 33, 41, 48, 56)]
        assert re.findall(r"Frame from (\d\d:\d\d)", text_of(name, row.ids)) == want
        assert "0:01:00" in text_of(name, row.ids)
    else:
        assert [float(s) for s in row.vision["second_per_grid_ts"]] == [15.0]


@pytest.mark.parametrize("reuse", [False, True], ids=["pixels", "features"])
def test_qwen_places_frames_by_their_times(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal ids of 15 seconds a pair of frames, at 2 ids per second: 30 apart, also for features made before."""
    model, row, seen = tiny("qwen2_5_vl"), row_of("qwen2_5_vl", "video"), []
    if reuse and not reuses_encoder(model):
        pytest.skip("this version of transformers takes no features")
    language = model.model.language_model
    whole = language.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["position_ids"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(language, "forward", watched)
    model.generate(**stock("qwen2_5_vl", "video"), max_new_tokens=1)
    answer_plain(model, processor_of("qwen2_5_vl"), [row], [encode(model, row)] if reuse else None, 1)
    want, got = seen
    assert torch.equal(got, want)
    places = row.ids == model.config.video_token_id
    times = got[-3, 0][places]  # of time, height and width; the text's come first, if at all
    if len(times.unique()) == 1:
        pytest.skip("this version of transformers gives all frames one time itself")  # 5.5.0: it multiplies no offsets
    assert sorted(set((times - times[0]).tolist())) == [0, 30, 60, 90]


def test_an_odd_number_of_frames_keeps_its_times() -> None:
    frames = minute(5)
    for _ in range(2):  # processors write into what they are given
        ids = row_of("qwen3_vl", "video", frames).ids
        assert re.findall(r"<([\d.]+) seconds>", text_of("qwen3_vl", ids)) == ["12.0", "36.0", "54.0"]


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_a_rate_that_nobody_says_is_assumed_and_said_where_it_matters(name: str) -> None:
    frames = Frames.of([picture((48, 32), i) for i in range(4)])
    assert (frames.fps, frames.known) == (ASSUMED_FPS, False)
    processor = PROCESSORS[name]()  # each is looked at once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = [make_row(processor, tiny(name).config, frames, question("frames")) for _ in range(2)]
        make_row(processor, tiny(name).config, minute(4), question("video"))
    said = [str(w.message) for w in caught if "frames per second" in str(w.message)]
    assert len(said) == (1 if name in WITH_TIMES else 0)
    assert all("3 per second are assumed (say fps in" in line for line in said)
    assert torch.equal(rows[0].ids, rows[1].ids)
    listed = make_row(processor, tiny(name).config, list(frames), question("video"))
    assert torch.equal(listed.ids, rows[0].ids)


@pytest.mark.parametrize("name", sorted(set(PROCESSORS) - set(WITH_VIDEO)))
def test_without_videos_frames_are_pictures(name: str) -> None:
    assert not takes_video(processor_of(name))
    row = row_of(name, "video")
    pictures = make_row(processor_of(name), tiny(name).config, list(minute()), question())
    assert torch.equal(row.ids, pictures.ids)
    assert row.modality == "image"


def test_a_template_without_videos_gets_pictures() -> None:
    processor = PROCESSORS["qwen2_vl"]()
    processor.chat_template = processor.chat_template.replace("<|video_pad|>", "")
    assert not takes_video(processor)
    processor.chat_template = "{{ raise_exception('only text') }}"
    assert not takes_video(processor)
    row = make_row(processor_of("internvl"), tiny("internvl").config, minute(), question("video"))
    assert (row.modality, row.visual) == ("image", 8 * 4)  # a tile each
    assert "Frame8: " in text_of("internvl", row.ids)


def test_frames_of_several_sizes_are_no_video() -> None:
    frames = Frames.of([picture((48, 32), 0), picture((32, 48), 1)], fps=1.0)
    with pytest.raises(ValueError, match=r"frames of a video differ in size \(32 x 48 and 48 x 32 pixels\)"):
        row_of("qwen2_vl", "video", frames)


def test_a_prompt_without_a_place_for_its_picture() -> None:
    processor = PROCESSORS["llava"]()
    processor.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(ValueError, match=r"the prompt holds no visual token|<image> tokens in the prompts"):
        make_row(processor, tiny("llava").config, picture((28, 28), 0), question())
    processor.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        make_row(processor, tiny("llava").config, picture((28, 28), 0), question())


def test_stored_answers_to_what_was_fed_otherwise_are_not_taken() -> None:
    plain = Question("q", "t", "i", TEXT, "")
    assert media_form([plain]) == {}
    for other in (question("video"), question("frames"), Question("q", "t", "i", TEXT, "", media=("a", "b"))):
        assert media_form([plain, other])
    marked = prompt_template(processor_of("gemma3"))
    processor = PROCESSORS["gemma3"]()
    processor.tokenizer.bos_token = None
    processor.chat_template = processor.chat_template.replace("{{ bos_token }}", "<s>")
    assert prompt_template(processor) != marked
    assert IMAGE not in row_of("llava", "none").ids.tolist()
