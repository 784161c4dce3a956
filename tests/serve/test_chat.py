"""Chat completions by OpenAI's own client: the answers are those of ``generate``, and the counts are right."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image
from places import ROOT
from readme import snippet
from serving import Running, asking, data_url, running, templated

import vtc
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.prompts import chat_inputs, message_inputs

IMAGE, QUESTION = vtc.example()
OTHER, ASKED = vtc.example(30)
TURNS = [
    *asking(QUESTION, IMAGE),
    {"role": "assistant", "content": "green"},
    {"role": "user", "content": "what color is the heart?"},
]
PROMPTS: dict[str, tuple[list[dict[str, Any]], list[Image.Image]]] = {
    "one": (asking(QUESTION, IMAGE), [IMAGE]),
    "two": (asking(ASKED, IMAGE, OTHER), [IMAGE, OTHER]),
    "text": ([{"role": "user", "content": "what color is grass?"}], []),
    "turns": (TURNS, [IMAGE]),
    "system": ([{"role": "system", "content": "answer in a word"}, *asking(ASKED, OTHER)], [OTHER]),
}
PIPELINE = "dart(keep=0.5, layer=1) + dart(keep=16, layer=3)"
SETTINGS: dict[str, tuple[Any, str | None, Any]] = {
    "default": (None, "dart", 64),
    "keep": ({"keep": 0.25}, "dart", 0.25),
    "method": ({"pruner": "random", "keep": 100}, "random", 100),
    "method at the server's keep": ({"pruner": "uniform"}, "uniform", 64),
    "parameter": ({"pruner": "dart(layer=1)", "keep": 32}, "dart(layer=1)", 32),
    "pipeline": ({"pruner": PIPELINE}, PIPELINE, None),
    "unpruned": ({"pruner": None}, None, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def other() -> Loaded:
    """The same model, not served."""
    return load_model(device="cpu")


def expected(other: Loaded, prompt: str, pruner: str | None, keep: Any, most: int) -> tuple[str, int, int, int]:
    """What ``generate`` gives, and the tokens of the prompt, seen and kept."""
    messages, pictures = PROMPTS[prompt]
    inputs = message_inputs(other.processor, templated(messages, *pictures))
    model: Any = other.model
    vtc.restore(model)
    if pruner is not None:
        vtc.compress(model, pruner, keep=keep)
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=most)[0, length:]
    seen = 576 * len(pictures)
    kept = seen if pruner is None else model.vtc.report.tokens_kept
    return other.processor.decode(ids, skip_special_tokens=True), length, seen, kept


PAIRS = [("one", setting) for setting in SETTINGS] + [
    (prompt, setting) for prompt in PROMPTS if prompt != "one" for setting in ("default", "unpruned")
]


@pytest.mark.parametrize(("prompt", "setting"), PAIRS)
def test_a_greedy_answer_is_generate_s(site: Running, other: Loaded, prompt: str, setting: str) -> None:
    given, pruner, keep = SETTINGS[setting]
    found = site.client().chat.completions.create(
        model="bundled", messages=PROMPTS[prompt][0], temperature=0, max_tokens=8,
        extra_body={} if given is None else {"vtc": given},
    )  # fmt: skip
    text, length, seen, kept = expected(other, prompt, pruner, keep, 8)
    assert found.choices[0].message.content == text
    usage = found.usage.model_dump()
    assert (usage["prompt_tokens"], usage["vtc"]["visual_tokens_seen"]) == (length, seen)
    assert usage["vtc"]["visual_tokens_kept"] == kept
    assert (usage["vtc"]["pruner"], usage["vtc"]["keep"]) == (pruner, keep)
    assert usage["total_tokens"] == length + usage["completion_tokens"]
    if isinstance(keep, int):
        assert kept == keep * len(PROMPTS[prompt][1])


@pytest.mark.parametrize("prompt", ["one", "two", "text"])
def test_a_stream_joins_to_the_whole_answer(site: Running, other: Loaded, prompt: str) -> None:
    asked: dict[str, Any] = {"model": "bundled", "messages": PROMPTS[prompt][0], "temperature": 0, "max_tokens": 8}
    chunks = list(site.client().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text, length, seen, kept = expected(other, prompt, "dart", 64, 8)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage.model_dump()
    assert chunks[-1].choices == []
    assert (usage["prompt_tokens"], usage["vtc"]["visual_tokens_seen"], usage["vtc"]["visual_tokens_kept"]) == (
        length, seen, kept,
    )  # fmt: skip
    assert all(c.usage is None for c in chunks[:-1])


def test_usage_of_a_stream_comes_only_when_asked_for(site: Running) -> None:
    chunks = list(
        site.client().chat.completions.create(model="bundled", messages=PROMPTS["one"][0], temperature=0, stream=True)
    )
    assert all(c.usage is None and c.choices for c in chunks)


def test_the_longest_answer_and_stops(site: Running) -> None:
    create = site.client().chat.completions.create
    asked: dict[str, Any] = {"model": "bundled", "messages": PROMPTS["one"][0], "temperature": 0}
    whole = create(**asked).choices[0].message.content
    assert len(whole) > 3
    cut = create(**asked, max_tokens=1)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 1)
    assert create(**asked, max_completion_tokens=1).usage.completion_tokens == 1
    stopped = create(**asked, stop=[whole[2], "never"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        whole[: whole.index(whole[2])],
        "stop",
    )
    chunks = create(**asked, stop=whole[2], stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole[: whole.index(whole[2])]


@pytest.mark.parametrize("pruned", [True, False])
def test_answers_of_a_length_are_generate_s(site: Running, other: Loaded, pruned: bool) -> None:
    inputs = message_inputs(other.processor, templated(PROMPTS["one"][0], IMAGE))
    model: Any = vtc.compress(other.model, "dart", keep=64) if pruned else vtc.restore(other.model)
    end, length = model.generation_config.eos_token_id, inputs["input_ids"].shape[1]

    def generated(**more: Any) -> list[int]:
        return model.generate(**inputs, do_sample=False, max_new_tokens=9, **more)[0, length:].tolist()

    def ask(stream: bool = False, **more: Any) -> Any:
        body = {**more, **({} if pruned else {"vtc": {"pruner": None}})}
        return site.client().chat.completions.create(
            model="bundled", messages=PROMPTS["one"][0], temperature=0, max_tokens=9, extra_body=body,
            **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
        )  # fmt: skip

    def text_of(ids: list[int]) -> str:
        return other.processor.decode(ids, skip_special_tokens=True)

    assert len(generated()) < 5  # it would have ended by itself
    on = generated(eos_token_id=end + 10_000)
    assert len(on) == 9
    assert end in on
    found = ask(ignore_eos=True)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (text_of(on), "length")
    assert found.usage.completion_tokens == 9
    chunks = list(ask(ignore_eos=True, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text_of(on)
    assert chunks[-1].usage.completion_tokens == 9
    least = generated(min_new_tokens=6)
    assert len(least) >= 6
    found = ask(min_tokens=6)
    assert found.choices[0].message.content == text_of(least)
    assert found.usage.completion_tokens == len(least)
    first = text_of(generated())
    assert ask(stop=first).choices[0].message.content == ""
    assert ask(stop=first, ignore_eos=True).choices[0].finish_reason == "stop"
    assert ask(stop=first, min_tokens=6).choices[0].message.content.startswith(first)
    assert ask(ignore_eos=False, min_tokens=0).choices[0].message.content == first


def test_draws_follow_the_seed_and_leave_others_alone(site: Running) -> None:
    def draw(**more: Any) -> str:
        asked = {"model": "bundled", "messages": PROMPTS["text"][0], "temperature": 2, "top_p": 1, "max_tokens": 12}
        return site.client().chat.completions.create(**asked, **more).choices[0].message.content

    seeded = [draw(seed=7) for _ in range(3)]
    assert len({*seeded}) == 1
    free = [draw() for _ in range(4)]
    assert len({*free}) > 1  # were the seed to stay, all that follow it would be alike
    assert draw(seed=8) != seeded[0]


def test_a_small_top_p_takes_the_likeliest(site: Running) -> None:
    create = site.client().chat.completions.create
    asked: dict[str, Any] = {"model": "bundled", "messages": PROMPTS["one"][0], "max_tokens": 8}
    assert create(**asked, temperature=2, top_p=1e-6).choices[0].message.content == (
        create(**asked, temperature=0).choices[0].message.content
    )


def test_many_at_once_are_answered_as_alone(site: Running, other: Loaded) -> None:
    names = [(prompt, setting) for prompt in ("one", "text") for setting in ("default", "keep", "unpruned")]
    want = {name: expected(other, name[0], *SETTINGS[name[1]][1:], 8)[0] for name in names}

    def ask(name: tuple[str, str]) -> str:
        given = SETTINGS[name[1]][0]
        found = site.client().chat.completions.create(
            model="bundled", messages=PROMPTS[name[0]][0], temperature=0, max_tokens=8,
            extra_body={} if given is None else {"vtc": given},
        )  # fmt: skip
        return found.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        assert dict(zip(names, pool.map(ask, names), strict=True)) == want
    assert site.server.worker.held == 0


def test_the_models(site: Running) -> None:
    (model,) = site.client().models.list().data
    assert model.id == site.client().models.retrieve("bundled").id == "bundled"
    about = model.model_dump()["vtc"]
    assert (about["pruner"], about["keep"], about["unpruned"]) == ("dart", 64, True)
    assert about["pruners"] == ["dart", "random", "uniform"]
    assert about["pruners_with_parameters"] == ["dart"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_formats(site: Running, other: Loaded, kind: str) -> None:
    url = data_url(IMAGE, kind)
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, {"type": "text", "text": QUESTION}]
    found = site.client().chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=8
    )
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as sent:
        inputs = chat_inputs(other.processor, QUESTION, [{"type": "image", "image": sent.convert("RGB")}])
    model: Any = vtc.compress(other.model, "dart", keep=64)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert found.choices[0].message.content == other.processor.decode(ids, skip_special_tokens=True)


def test_the_page_of_docs_says_what_works(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code = snippet("serve client").replace("http://127.0.0.1:8000", site.url)
    assert site.url in code
    exec(compile(code, "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out.startswith("green {")
    httpx.get(f"{site.url}/nowhere")  # a reason has a line once it has come up
    assert metrics_named((ROOT / "docs" / "serve.md").read_text()) == metrics_named(
        httpx.get(f"{site.url}/metrics").text
    )


def metrics_named(text: str) -> set[str]:
    """Names of metrics in a page or in what Prometheus reads, parts of histograms aside."""
    found = re.findall(r"\bvtc_\w+", "\n".join(line for line in text.splitlines() if not line.startswith("# ")))
    return {re.sub("_(bucket|count|sum)$", "", name) for name in found if not name.endswith("_created")}


def test_health_and_metrics(site: Running) -> None:
    def metrics() -> dict[str, float]:
        lines = httpx.get(f"{site.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    assert httpx.get(f"{site.url}/health").json() == {"status": "ok"}
    before = metrics()
    found = site.client().chat.completions.create(
        model="bundled", messages=PROMPTS["two"][0], temperature=0, extra_body={"vtc": {"keep": 100}}
    )
    with pytest.raises(Exception, match="logprobs"):
        site.client().chat.completions.create(model="bundled", messages=PROMPTS["text"][0], logprobs=True)
    after = metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after if "_created" not in name}
    assert grown["vtc_visual_tokens_seen_total"] == 1152
    assert grown["vtc_visual_tokens_kept_total"] == 200
    assert grown["vtc_prompt_tokens_total"] == found.usage.prompt_tokens
    assert grown["vtc_generated_tokens_total"] == found.usage.completion_tokens
    assert grown["vtc_time_to_first_token_seconds_count"] == 1
    assert grown["vtc_inter_token_seconds_count"] == found.usage.completion_tokens - 1
    assert grown['vtc_requests_total{path="/v1/chat/completions",status="200"}'] == 1
    assert grown['vtc_requests_total{path="/v1/chat/completions",status="400"}'] == 1
    assert grown['vtc_refused_total{reason="unsupported_field"}'] == 1
    assert after["vtc_queue_depth"] == after["vtc_running"] == 0
