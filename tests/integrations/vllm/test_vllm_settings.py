"""Settings of the server and of a request, and what is known of a picture before it is encoded. Nothing needs vLLM."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc.integrations.vllm.item_fields import HERE, OTHER, ItemFields, chunks, cut_items, cut_run, split_fields
from vtc.integrations.vllm.kept_memory import Kept, KeptMemory
from vtc.integrations.vllm.settings import EngineSettings, kept_counts, unpacked
from vtc.pruners.base import resolve_keep

SERVER: dict[str, Any] = {"pruner": "divprune", "keep": 0.25, "choices": ["random", "uniform(keep=5)", "cdpruner"]}


def test_importing_vtc_does_not_import_vllm() -> None:
    code = "import vtc, vtc.integrations.vllm, vtc.integrations.vllm.export, sys; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_takes_what_the_server_says_and_may_ask_for_another_keep() -> None:
    server = EngineSettings.read(SERVER)
    assert server.request({}).kept([576]) == [144]
    assert server.request({"vtc_keep": 64}).kept([576, 40]) == [64, 40]
    assert server.request({"vtc_keep": 1}).kept([576]) == [1]
    assert server.request({"vtc_keep": 1.0}).kept([576]) == [576]
    assert server.request({"vtc_pruner": "uniform(keep=5)"}).kept([576]) == [5]


@pytest.mark.parametrize("request_", [{}, {"vtc_keep": 1}, {"vtc_keep": 1.0}, {"vtc_pruner": "uniform(keep=5)"}])
def test_the_worker_reads_the_pipeline_that_the_front_end_wrote(request_: dict[str, Any]) -> None:
    server = EngineSettings.read(SERVER)
    found = server.request(request_)
    assert server.pipeline(*unpacked(found.packed())) == found.pipeline


def test_what_tells_rows_apart_carries_method_parameters_and_keep() -> None:
    def identity(**settings: Any) -> str:
        return EngineSettings.read({"pruner": "random", "keep": 0.25, **settings}).request({}).identity

    same = identity()
    others = [identity(keep=0.5), identity(keep=1), identity(pruner="random(seed=1)"), identity(pruner="norm")]
    assert len({same, *others}) == 5
    assert identity(choices=["norm"]) == same  # what it does not run does not matter
    server = EngineSettings.read(SERVER)
    assert server.request({"vtc_keep": 0.25}).identity == server.request({}).identity


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (None, 'has no "vtc"'),
        ({}, 'must name a "pruner"'),
        ({"pruner": "divprune"}, "must say how much 'divprune' keeps"),
        ({"pruner": "divprune", "keep": 0.25, "choises": []}, "Did you mean 'choices'"),
        ({"pruner": "divprun", "keep": 0.25}, "Did you mean 'divprune'"),
        ({"pruner": "divprune", "keep": 1.5}, "vtc.keep=1.5 is out of range"),
        ({"pruner": "divprune", "keep": 0.25, "choices": "random"}, "must be a list of texts"),
        ({"pruner": 3, "keep": 0.25}, "vtc.pruner must be"),
    ],
)
def test_bad_settings_are_refused_in_words(given_: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words.replace("(", r"\(")):
        EngineSettings.read(given_)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"vtc_kep": 3}, "Did you mean 'vtc_keep'"),
        ({"vtc_keep": 0}, "vtc_keep=0 is out of range"),
        ({"vtc_keep": "a"}, "vtc_keep must be an int"),
        ({"vtc_pruner": "norm"}, "is not offered by this server"),
        ({"vtc_pruner": "uniform(keep=5)", "vtc_keep": 3}, "says itself what it keeps"),
        ({"vtc_question": 3}, "must be a text"),
    ],
)
def test_bad_requests_are_refused_in_words(request_: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words.replace("(", r"\(")):
        EngineSettings.read(SERVER).request(request_)


def test_a_pipeline_keeps_of_the_original_number_and_never_more_than_is_left() -> None:
    pipeline = EngineSettings.read({"pruner": "uniform(keep=0.5) + norm(keep=0.8) + random(keep=7)"}).pipelines[0]
    assert kept_counts(pipeline, [100, 10]) == [7, 5]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.floats(0.01, 1.0))
def test_a_run_of_placeholders_is_cut_span_by_span(lengths: list[int], keep: float) -> None:
    kept = [resolve_keep(keep, n) for n in lengths]
    tokens, mask = [1], [False]
    for n in lengths:  # words between the crops, as Gemma 3 has them
        tokens += [9] * n + [2]
        mask += [True] * n + [False]
    places = cut_run(tokens, mask, lengths, kept)
    assert [i for i in places if not mask[i]] == [i for i, is_row in enumerate(mask) if not is_row]
    left, at = [], 1
    for n in lengths:
        left.append(sum(at <= i < at + n for i in places))
        at += n + 1
    assert left == kept


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 150))
def test_the_tower_runs_whole_tokens_up_to_its_budget(full: list[int], limit: int) -> None:
    found = chunks(full, limit)
    assert [i for some in found for i in some] == list(range(len(full)))
    sums = [sum(full[i] for i in some) for some in found]
    assert all(total <= limit or len(some) == 1 for total, some in zip(sums, found, strict=True))
    # no two neighbours would have fitted: the tower is not run more often than it must
    assert all(sums[i] + full[found[i + 1].start] > limit for i in range(len(found) - 1))


def test_many_small_kept_pictures_are_not_one_large_call() -> None:
    """Eight pictures of 576 tokens keep 16 each: 128 fit a budget of 600, but the tower would run 4,608."""
    assert [len(some) for some in chunks([576] * 8, 600)] == [1] * 8


def test_a_batch_is_cut_item_by_item() -> None:
    whole = {"pixel_values": torch.arange(12), "image_grid_thw": torch.arange(3), "sizes": ["a", "b", "c"], "id": 7}
    found = cut_items(whole, range(1, 3), 3, {"pixel_values": [2, 4, 6]})
    assert found["pixel_values"].tolist() == list(range(2, 12))
    assert found["image_grid_thw"].tolist() == [1, 2]
    assert found["sizes"] == ["b", "c"]
    assert found["id"] == 7


def test_fields_come_out_of_a_batch_as_they_went_in() -> None:
    items = [
        ItemFields([4, 4], [0.0, 0.25, 0.0], b"\x00\xff" * 16, [5, OTHER, 6, HERE, 7, 8]),
        ItemFields([9], [1.0, 3.0, 1.0], b"\x01\x02" * 16, [HERE, 7]),
    ]
    names = items[0].tensors()
    batch = {name: [item.tensors()[name] for item in items] for name in names}
    others, found = split_fields({"pixel_values": 1, **batch})
    assert (others, found) == ({"pixel_values": 1}, items)
    assert split_fields({"pixel_values": 1}) == ({"pixel_values": 1}, [])


def test_the_text_around_a_picture_leaves_other_pictures_out() -> None:
    one = ItemFields([4], [0.0, 0.5, 0.0], b"", [5, HERE, 6, OTHER, 7, 8]).around
    assert (one.before, one.after, one.question) == ([5], [6, 7, 8], [7, 8])
    other = ItemFields([4], [0.0, 0.5, 0.0], b"", [5, OTHER, 6, HERE, 7, 8]).around
    assert (other.before, other.after, other.question) == ([5, 6], [7, 8], [7, 8])


def test_a_choice_is_remembered_until_its_room_is_needed() -> None:
    memory = KeptMemory(limit=3 * 80)
    for i in range(3):
        memory.put(bytes([i]), Kept(torch.arange(10)))
    assert memory.get(b"\x00") is not None  # counts as new again
    memory.put(b"\x09", Kept(torch.arange(10)))
    assert memory.get(b"\x01") is None
    assert memory.get(b"\x00") is not None
    assert (len(memory), memory.bytes) == (3, 240)
    memory.put(b"\x09", Kept(torch.arange(5)))
    assert memory.bytes == 200
