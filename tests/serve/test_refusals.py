"""What a server refuses: in words, with a status, and the next request is answered as if nothing had been."""

from __future__ import annotations

import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from serving import PATIENCE, Running, asking, data_url, running

from vtc.serve.requests.limits import Limits

NOISE = data_url(Image.effect_noise((64, 64), 9))  # 22 characters before its base64
RED = Image.new("RGB", (64, 64), "red")
LIMITS = Limits(body_mb=1, picture_megapixels=1, pictures=2, text_chars=500, max_tokens=32, queue=2)
HEADER = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)  # 3.6 gigapixels in 100 bytes
CHUNKS = [(b"IHDR", HEADER), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
LARGE = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in CHUNKS
)
GOOD: dict[str, Any] = {"model": "bundled", "messages": asking("what color?", RED), "temperature": 0, "max_tokens": 4}
# nothing of the machine or the code may be seen: folders, traces, modules, objects' addresses
INNER = re.compile(r"/(work|home|usr|tmp|root)/|site-packages|Traceback|\.py\b|0x[0-9a-f]{6}|vtc\.\w+\.\w+\.|Error:")


def image(url: Any, **more: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url, **more}}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]}


def messages(*given: Any) -> dict[str, Any]:
    return {"messages": list(given)}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "another model": ({"model": "gpt-4o"}, 404, "bundled is served"),
    "no model": ({"model": None}, 400, "model must be a string, got null"),
    "no messages": ({"messages": []}, 400, "at least one message"),
    "messages of another kind": ({"messages": "hi"}, 400, "messages must be a list"),
    "a message of another kind": (messages("hi"), 400, r"messages\[0\] must be an object"),
    "a role": (messages({"role": "tool", "content": "x"}), 400, r"role must be one of system"),
    "no content": (messages({"role": "user"}), 400, "content must be a string or a list"),
    "nothing to answer": (messages(user("a"), {"role": "assistant", "content": "b"}), 400, "last message must be"),
    "a picture of the assistant's": (
        messages({"role": "assistant", "content": image(data_url(RED))["messages"][0]["content"]}, user("?")), 400,
        "only the user's messages",
    ),
    "a part": (messages(user([{"type": "input_audio"}])), 400, "type must be text or image_url, got 'input_audio'"),
    "a part's field": (messages(user([{"type": "text", "text": "a", "x": 1}])), 400, "has a field 'x'"),
    "a tool's call": (messages(user("a", tool_calls=[{}])), 400, "'tool_calls', which is not supported"),
    "a long text": (messages(user("x" * 501)), 400, "501 characters, at most 500"),
    "a placeholder": (messages(user("what is <image>?")), 400, "holds <image>, which stands for a picture"),
    "half a pair": (messages(user("\ud800")), 400, "surrogate"),
    "three pictures": ({"messages": asking("?", RED, RED, RED)}, 400, "3 pictures, at most 2"),
    "a remote picture": (image("https://example.org/a.png"), 400, "this server fetches none"),
    "a file": (image("file:///etc/hostname"), 400, "must be a data URL"),
    "a path": (image("/etc/hostname"), 400, "must be a data URL"),
    "another kind of data": (image("data:text/plain;base64,QQ=="), 400, "must be a data URL"),
    "no base64": (image("data:image/png;base64,@@@"), 400, "not valid base64"),
    "no picture": (image(data_url(b"hello")), 400, "no whole PNG, JPEG, WebP or GIF"),
    "a format that is not read": (image(data_url(RED, "bmp")), 400, "no whole PNG, JPEG, WebP or GIF"),
    "a torn picture": (image(NOISE[: 22 + 4 * 300]), 400, "no whole PNG, JPEG"),
    "far too many pixels": (image(data_url(LARGE)), 400, "pixels, allowed are 1 million"),
    "too many pixels": (image(data_url(Image.new("L", (1001, 1000)))), 400, "1001 x 1000 pixels, allowed are 1"),
    "a long picture": (image(data_url(Image.new("L", (1, 201)))), 400, "1 x 201 pixels, one side may be 200 times"),
    "a detail": (image(data_url(RED), detail="low"), 400, "detail must be auto"),
    "tokens": ({"max_tokens": 33}, 400, "max_tokens=33 is out of range: at most 32"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens must be an integer of at least 1"),
    "tokens of another kind": ({"max_tokens": True}, 400, "max_tokens must be an integer"),
    "a least of more": ({"min_tokens": 5}, 400, "min_tokens=5 is out of range: at most 4, the longest answer"),
    "a least of more than any": ({"max_tokens": None, "min_tokens": 33}, 400, "min_tokens=33 .* at most 32"),
    "a least of another kind": ({"min_tokens": -1}, 400, "min_tokens must be an integer of at least 0"),
    "an end of another kind": ({"ignore_eos": 1}, 400, "ignore_eos must be true or false, got 1"),
    "heat": ({"temperature": 2.5}, 400, "temperature must be a number from 0 to 2, got 2.5"),
    "top_p": ({"top_p": 0}, 400, "top_p=0 leaves no token"),
    "seed": ({"seed": 1.5}, 400, "seed must be an integer"),
    "stops": ({"stop": ["a"] * 5}, 400, "at most 4 strings"),
    "an empty stop": ({"stop": ""}, 400, "1 to 100 characters"),
    "several answers": ({"n": 2}, 400, "n must be an integer from 1 to 1, got 2"),
    "stream": ({"stream": "yes"}, 400, "stream must be true or false"),
    "options without stream": ({"stream_options": {"include_usage": True}}, 400, "goes with stream: true"),
    "logprobs": ({"logprobs": True}, 400, "logprobs=true is not supported"),
    "a penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty=0.5 is not supported"),
    "a false penalty": ({"frequency_penalty": False}, 400, "frequency_penalty=false is not supported"),
    "tools": ({"tools": [{}]}, 400, "tools=a list is not supported"),
    "a format": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "a made-up field": ({"top_k": 5}, 400, "'top_k' is not supported here"),
    "vtc": ({"vtc": 64}, 400, "vtc must be an object, got 64"),
    "vtc's field": ({"vtc": {"ratio": 2}}, 400, "vtc has no field 'ratio'"),
    "keep 0": ({"vtc": {"keep": 0}}, 400, "keep=0 is out of range"),
    "keep of another kind": ({"vtc": {"keep": "64"}}, 400, "vtc.keep must be an int"),
    "too little": ({"vtc": {"keep": 7}}, 400, "at least 8"),
    "too much": ({"vtc": {"keep": 257}}, 400, "at most 256"),
    "another unit": ({"vtc": {"keep": 0.25}}, 400, "keep must be tokens per image on this server"),
    "another method": ({"vtc": {"pruner": "fastv", "keep": 9}}, 400, "is not offered here. Offered are: dart"),
    "no method": ({"vtc": {"pruner": "nowhere"}}, 400, "is not offered here. Offered are"),
    "code": ({"vtc": {"pruner": "dart(layer=1+1)"}}, 400, "is not offered"),
    "a parameter that there is none of": ({"vtc": {"pruner": "dart(pivot=1)"}}, 400, "can't be read. Offered are"),
    "a parameter that is not offered": ({"vtc": {"pruner": "random(seed=3)"}}, 400, "is not offered here"),
    "a layer too many": ({"vtc": {"pruner": "dart(layer=99)"}}, 400, "can't be set up on this model"),
    "keep of nothing": ({"vtc": {"pruner": None, "keep": 9}}, 400, "everything is kept"),
    "a long method": ({"vtc": {"pruner": "dart" + "+dart" * 99}}, 400, "characters, at most 300"),
}  # fmt: skip


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    with running(limits=LIMITS, keep=(8, 256)) as found:
        yield found


def post(site: Running, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(f"{site.url}/v1/chat/completions", json=body, timeout=PATIENCE, **more)


@pytest.fixture(scope="module")
def answer(site: Running) -> str:
    return post(site, GOOD).json()["choices"][0]["message"]["content"]


def error_of(found: httpx.Response) -> dict[str, Any]:
    """What a refusal says; checked for what it must not say."""
    assert not INNER.search(found.text), found.text
    assert set(found.json()) == {"error"}
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert re.fullmatch("[0-9a-f]{16}", found.headers["x-request-id"])
    return found.json()["error"]


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_in_words(site: Running, answer: str, name: str) -> None:
    change, status, words = BAD[name]
    found = post(site, None, content=json.dumps({**GOOD, **change}), headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    assert re.search(words, error_of(found)["message"]), found.text
    assert site.server.worker.held == 0


def test_afterwards_all_is_as_before(site: Running, answer: str) -> None:
    assert post(site, GOOD).json()["choices"][0]["message"]["content"] == answer


def test_the_client_raises_what_it_raises_at_openai_s(site: Running) -> None:
    create = site.client().chat.completions.create
    with pytest.raises(openai.BadRequestError, match="top_p=0"):
        create(**GOOD, top_p=0)
    with pytest.raises(openai.NotFoundError, match="bundled is served"):
        create(**{**GOOD, "model": "x"})
    with pytest.raises(openai.BadRequestError, match="not supported"):
        create(**GOOD, stream=True, logprobs=True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe"])
def test_what_is_no_object_of_json(site: Running, body: bytes) -> None:
    found = httpx.post(f"{site.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert "the body" in error_of(found)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "nothing at this path"),
        ("GET", "/v1/chat/completions", 405, "takes POST only"),
        ("POST", "/health", 405, "takes GET only"),
        ("GET", "/v1/models/other", 404, "bundled is served"),
        ("GET", "/docs", 404, "nothing at this path"),
        ("GET", "/../../etc/hostname", 404, "nothing at this path"),
    ],
)
def test_paths(site: Running, method: str, path: str, status: int, words: str) -> None:
    found = httpx.request(method, site.url + path)
    assert found.status_code == status
    assert words in error_of(found)["message"]


def test_a_body_of_another_type(site: Running) -> None:  # what a page of another site may send without asking
    found = httpx.post(
        f"{site.url}/v1/chat/completions", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"}
    )
    assert (found.status_code, error_of(found)["type"]) == (415, "invalid_request_error")


@pytest.mark.parametrize("said", [True, False], ids=["told ahead", "as it comes"])
def test_a_large_body(site: Running, said: bool) -> None:
    body = json.dumps({**GOOD, "user": "x" * (3 << 19)}).encode()
    parts = body if said else iter([body[i : i + 65536] for i in range(0, len(body), 65536)])
    found = httpx.post(
        f"{site.url}/v1/chat/completions", content=parts, headers={"Content-Type": "application/json"}, timeout=PATIENCE
    )
    assert found.status_code == 413
    assert "larger than 1 MB" in error_of(found)["message"]
    assert site.server.worker.held == 0


def test_another_host_s_name(site: Running) -> None:  # a name that somebody has pointed at this machine
    found = httpx.get(f"{site.url}/v1/models", headers={"Host": "somewhere.example"})
    assert (found.status_code, error_of(found)["code"]) == (403, "host_not_allowed")
    port = site.url.rpartition(":")[2]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80"):
        assert httpx.get(f"{site.url}/v1/models", headers={"Host": name}).status_code == 200


def test_half_a_request_holds_no_place_for_long(site: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtc.serve.body.SECONDS", 0.3)
    monkeypatch.setattr("vtc.serve.front.DRAIN_SECONDS", 0.3)
    host, port = site.url.removeprefix("http://").split(":")
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Content-Length: 50",
    )
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall("\r\n".join([*lines, "", "{"]).encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert post(site, GOOD).status_code == 200
    assert site.server.worker.held == 0


def test_what_goes_wrong_inside_is_not_told(
    site: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("in /work/secret/place.py")

    with monkeypatch.context() as patched:
        patched.setattr(site.server.engine.model, "generate", fails)
        found = post(site, GOOD)
    assert found.status_code == 500
    assert found.headers["x-request-id"] in error_of(found)["message"]
    assert "in /work/secret/place.py" in caplog.text  # the log has all of it
    assert post(site, GOOD).status_code == 200


def test_a_prompt_that_is_too_long_and_an_answer_that_does_not_fit() -> None:
    with running(limits=Limits(prompt_tokens=600)) as site:
        found = post(site, {**GOOD, "messages": asking("?", RED, RED)})
        assert error_of(found)["code"] == "context_length_exceeded"
        assert "at most 600 fit" in error_of(found)["message"]
        found = post(site, {**GOOD, "max_tokens": 100})
        assert error_of(found)["code"] == "context_length_exceeded"
        assert "are left" in error_of(found)["message"]
        found = post(site, {**GOOD, "max_tokens": None, "min_tokens": 100})
        assert "min_tokens=100 does not fit behind a prompt of" in error_of(found)["message"]
        assert post(site, GOOD).status_code == 200


def test_an_api_key_and_what_is_open_without_one() -> None:
    with running(key="s3cret-key", page=True) as site:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret-key"},
            {"Authorization": "Basic s3cret-key"},
        ):
            found = httpx.get(f"{site.url}/v1/models", headers=given)
            assert (found.status_code, error_of(found)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{site.url}/metrics").status_code == 401
        assert httpx.get(f"{site.url}/health").status_code == 200
        assert "s3cret" not in httpx.get(f"{site.url}/").text
        with pytest.raises(openai.AuthenticationError):
            site.client("other").chat.completions.create(**GOOD)
        assert site.client("s3cret-key").chat.completions.create(**GOOD).choices


def test_what_is_not_allowed_is_not_there() -> None:
    with running(allow=["random"], page=False) as site:
        found = post(site, {**GOOD, "vtc": {"pruner": None}})
        assert "the unpruned model is not offered here. Offered are: dart, random." in error_of(found)["message"]
        assert httpx.get(site.url).status_code == 404
        assert httpx.post(f"{site.url}/v1/vtc/compare", json={}).status_code == 404
