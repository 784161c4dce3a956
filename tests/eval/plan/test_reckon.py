"""From operators to seconds and batches: the roofline, the memory, the turning points."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import H100, inputs, weightless
from zoo import tiny

from vtc.eval.cost.model_work import ModelWork
from vtc.eval.cost.operators import ATTENTION, ELEMENTWISE, MATMUL, Operator, flops_of
from vtc.eval.plan.kept_tokens import kept_by, unpruned
from vtc.eval.plan.reckon import Reckoning, turning_points
from vtc.eval.plan.selection_cost import selection_cost
from vtc.models.layout.model_parts import locate
from vtc.pipeline_text import parse


def reckoning(kind: str = "llava", memory: float = 1e9) -> Reckoning:
    work = ModelWork(weightless(kind))
    return Reckoning(work, work.tower(inputs(kind)), 10, 16, replace(H100, memory=memory), "bfloat16")


def test_an_operator_takes_the_slower_of_products_and_memory() -> None:
    products, memory = Operator(MATMUL, 1e12, 1e3, 1e3), Operator(ELEMENTWISE, 0, 0, 1e10)
    assert H100.seconds([products], "bfloat16") == pytest.approx(1e12 / (0.7 * 989.5e12))
    assert H100.seconds([memory], "bfloat16") == pytest.approx(1e10 / (0.8 * 3350e9))
    assert H100.seconds([Operator(MATMUL, 1, 1, 1)] * 3, "bfloat16") == pytest.approx(3 * H100.launch)
    assert H100.seconds([products], "float32") > 10 * H100.seconds([products], "bfloat16")


def test_a_batch_reads_the_weights_once_and_more_experts() -> None:
    one = Operator(MATMUL, 10, 100, 7)
    assert one.batched(4) == Operator(MATMUL, 40, 100, 28)
    experts = Operator(MATMUL, 10, 100, 7, experts=(8, 2, 1))
    assert [round(experts.batched(b).weights, 1) for b in (1, 2)] == [25.0, 43.8]  # 100 x (1 - 0.75^b)


def test_attention_goes_with_the_square_of_what_is_left() -> None:
    assert Operator(ATTENTION, 100, 0, 10).shortened(0.5) == Operator(ATTENTION, 25, 0, 5)
    assert Operator(MATMUL, 100, 8, 10).shortened(0.5) == Operator(MATMUL, 50, 8, 5)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5_moe"])
def test_more_memory_and_fewer_tokens_let_more_requests_in(kind: str) -> None:
    batches = []
    for memory in (2e6, 2e7, 2e8):
        r = reckoning(kind, memory)
        whole = sum(r.tower_work.lengths)
        kept = [unpruned((n,), r.work.depth) for n in (whole, whole // 2, 1)]
        found = [r.largest_batch(k) for k in kept]
        assert found == sorted(found)
        batches.append(found[0])
    assert batches == sorted(batches)
    assert batches[-1] > batches[0]
    tight = reckoning(kind, 0)
    assert tight.largest_batch(kept[0]) == 0
    room = r.weights + 3 * (r.kv_bytes(kept[0], answer=True) + r.activation_bytes(kept[0]))
    assert reckoning(kind, room + 1).largest_batch(kept[0]) == 3
    assert reckoning(kind, room - 1).largest_batch(kept[0]) == 2


def test_turning_points_of_a_curve() -> None:
    keeps = (0.9, 0.5, 0.25, 0.12, 0.06)
    rising = turning_points(list(zip(keeps, (1.01, 1.3, 1.6, 1.61, 1.61), strict=True)))
    assert (rising.pays_from, rising.flat_below, rising.best) == (0.5, 0.25, 1.61)
    losing = turning_points([(k, 0.9) for k in keeps])
    assert losing.pays_from is None


def test_selection_grows_with_what_is_chosen_from_and_is_nothing_where_all_is_withdrawn() -> None:
    parts = locate(tiny("llava"))
    dear, cheap = (
        selection_cost(parts, kept_by(parts, parse(s), (144,)), 8) for s in ("divprune(keep=64)", "vtw(layer=2)")
    )
    assert dear is not None
    assert cheap is not None
    assert dear.operators > 64
    assert dear.on(H100, 1) >= dear.operators * H100.launch
    assert (cheap.seconds, cheap.on(H100, 8)) == (0, 0)


@pytest.mark.parametrize(("method", "asks"), [("quecc(weights=untrained)", True), ("uniform", False),
                                              ("quecc(weights=untrained, no_text=True)", False)])  # fmt: skip
def test_a_pass_over_the_question_alone_is_counted(method: str, asks: bool) -> None:
    r = reckoning("llava")
    n = sum(r.tower_work.lengths)
    kept = kept_by(locate(tiny("llava")), parse(method, keep=n // 4), r.tower_work.lengths)
    r.run([kept])
    times, flops = r.times(kept, 2), r.flops(kept)
    assert kept.asks is asks
    assert ("question" in flops) is (times.question > 0) is asks
    if asks:
        assert flops["question"] == flops_of(r.work.prefill([r.text] * r.work.depth))
    assert times.prefill == pytest.approx(
        times.tower + times.projector + times.question + times.selection + times.decoder + times.head
    )
