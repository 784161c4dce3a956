"""EmbedLens: membership by nearest vocabulary ids and by calibrated directions, the order under a budget, refusals."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from made_up import SMALL
from properties import Spans, check_selection, chosen, peak_bytes
from torch.nn.functional import normalize
from zoo import FAMILIES, prompt, shapes_of, tiny

import vtc
from vtc.eval.vlm.loading import load_model
from vtc.models.layout.embedding_table import embeddings, vocabulary_size
from vtc.models.layout.model_parts import locate
from vtc.pruners.primitives.calibration_file import FORMAT
from vtc.pruners.primitives.nearest_rows import nearest_ids
from vtc.pruners.primitives.vocabulary import SHIPPED, read_calibration, shipped

pytestmark = pytest.mark.usefixtures("no_grad")
V, D = 90, 24


def drawn(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g)


TABLE = drawn(V, 1)


def spans(counts=(30, 11), budgets=(12, 4), seed=2, table=TABLE, **more):
    return Spans([drawn(n, seed + i) for i, n in enumerate(counts)], list(budgets), table=table, **more)


def lens(**params):
    [pruner] = vtc.parse("embedlens", **params)
    return pruner


def calibration(path, classes, vocabulary=V, hidden=D, **more):
    kinds = [
        {"kind": kind, "ids": [3], "direction": direction.tolist(), "threshold": bar}
        for kind, direction, bar in classes
    ]
    about = {"format": FORMAT, "model": "m", "vocabulary_size": vocabulary, "hidden_size": hidden, "classes": kinds}
    path.write_text(json.dumps({**about, **more}))
    return str(path)


# ------------------------------------------------------------------ the nearest ids
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "k"), [(90, 3), (700, 1), (2, 2)])
def test_nearest_ids_are_those_of_all_similarities(rows, k, dtype):
    x, table = drawn(40, 5).to(dtype).view(2, 20, D), (drawn(rows, 6) * torch.rand(rows, 1)).to(dtype)
    want = (normalize(x.double(), dim=-1) @ normalize(table.double(), dim=-1).T).topk(k, -1).indices
    assert torch.equal(nearest_ids(x, table, k), want)


def test_equal_rows_go_by_the_lowest_id_also_from_part_to_part():
    table = drawn(600, 1)
    table[[40, 300, 599]] = table[7].clone()
    table[10] = 0
    assert nearest_ids(2 * table[7], table, 4).tolist() == [7, 40, 300, 599]
    bad = torch.stack([torch.zeros(D), torch.full((D,), torch.inf), torch.full((D,), torch.nan)])
    assert nearest_ids(bad, table, 3).tolist() == [[0, 1, 2]] * 3


def test_the_similarities_are_never_there_at_once():
    sizes = replace(SMALL, decoder=4096, vocabulary=32000)
    held = peak_bytes(
        lambda: (torch.empty(2880, 4096, dtype=torch.bfloat16), torch.empty(32000, 4096, dtype=torch.bfloat16)),
        lambda given: nearest_ids(*given, 3),
    )
    assert 0 < held < 4 * 2880 * sizes.decoder * 2
    assert held < 2880 * 32000 * 4 / 3


# ------------------------------------------------------------------ classes and budgets
def by_hand(row, sink, dead, top=3):
    """Class of each token, written out: 1 sink, 2 dead, 0 alive."""
    made = []
    for x in row:
        order = sorted(range(V), key=lambda v: -torch.cosine_similarity(x, TABLE[v], dim=0).item())[:top]
        made.append(1 if set(order) & set(sink) else 2 if set(order) & set(dead) else 0)
    return made


@pytest.mark.parametrize("top", [1, 3])
def test_without_keep_all_alive_tokens_stay(top):
    sink, dead = tuple(range(0, 12)), tuple(range(8, 40))
    given, pruner = spans(), lens(sink=sink, dead=dead, top=top)
    assert pruner.adaptive_count
    found = check_selection(pruner, given)
    for row, kept in zip(given.features, found, strict=True):
        kinds = by_hand(row, sink, dead, top)
        assert 0 < kinds.count(0) < len(kinds)
        assert kept == [i for i, kind in enumerate(kinds) if kind == 0]


def test_one_token_is_left_where_all_are_dead():
    given = spans()
    [first, second] = check_selection(lens(dead=tuple(range(V))), given)
    assert len(first) == len(second) == 1
    # the one that is least like a dead row
    like = normalize(given.features[0], dim=-1) @ normalize(TABLE, dim=-1).T
    assert first == [int(like.amax(1).argmin())]


@pytest.mark.parametrize("rest", ["norm", "diversity"])
def test_under_a_budget_sinks_go_first_then_dead_ones_by_likeness_then_alive_ones(rest):
    sink, dead = (1, 2, 3), (10, 11, 12, 13, 14)
    given = spans((40,), (1,))
    kinds = by_hand(given.features[0], sink, dead)
    unit = normalize(given.features[0], dim=-1)
    like = {
        1: (unit @ normalize(TABLE[list(sink)], dim=-1).T).amax(1),
        2: (unit @ normalize(TABLE[list(dead)], dim=-1).T).amax(1),
    }
    alive = [i for i, kind in enumerate(kinds) if kind == 0]
    worst = [i for kind in (2, 1) for i in sorted(range(40), key=lambda i: like[kind][i].item()) if kinds[i] == kind]
    assert 0 < len(alive) < 39
    everything = chosen(lens(sink=sink, dead=dead, rest=rest, keep=40), spans((40,), (40,)).tokens())[0]
    assert sorted(everything[: len(alive)]) == alive
    assert everything[len(alive) :] == worst
    if rest == "norm":
        assert everything[: len(alive)] == sorted(alive, key=lambda i: -given.features[0][i].norm().item())
    else:
        [most_diverse] = chosen(vtc.parse("divprune", keep=5)[0], Spans([given.features[0][alive]], [5]).tokens())
        assert [alive.index(i) for i in everything[:5]] == most_diverse
    for k in (1, 7, len(alive), len(alive) + 3, 39):
        budgeted = spans((40, 23), (k, min(k, 22)))
        [kept, _] = check_selection(lens(sink=sink, dead=dead, rest=rest, keep=k), budgeted)
        assert sorted(kept) == sorted(everything[:k])


def test_directions_and_their_thresholds(tmp_path):
    sink, dead = drawn(1, 50)[0], drawn(1, 51)[0]
    path = calibration(tmp_path / "c.json", [("sink", 3 * sink, 0.9), ("dead", dead, 0.6), ("dead", -sink, 0.95)])
    assert not lens(classes=path).reads_vocabulary
    noise = drawn(8, 52)
    rows = torch.stack([sink * 5, dead + 0.1 * noise[0], noise[1], -sink, sink + dead, noise[2]])
    cosine = [normalize(rows, dim=-1) @ normalize(v, dim=0) for v in (sink, dead)]
    want = [i for i in range(6) if not (cosine[0][i] >= 0.9 or cosine[1][i] >= 0.6 or cosine[0][i] <= -0.95)]
    assert 2 in want
    assert not {0, 1, 3} & set(want)
    given = Spans([rows, rows[:4]], [3, 2], table=TABLE)
    assert check_selection(lens(classes=path), given) == [want, [i for i in want if i < 4]]
    found = check_selection(lens(classes=path, keep=0.5), given)
    assert set(want) <= {*found[0]} or {*found[0]} <= set(want)
    # none at all: everything is alive
    none = calibration(tmp_path / "none.json", [])
    assert check_selection(lens(classes=none), given) == [list(range(6)), list(range(4))]


def test_files_of_another_model_or_kind_are_named(tmp_path):
    good = ("dead", drawn(1)[0], 0.5)
    given = spans()
    for changed, message in (({"vocabulary": V + 1}, "91 embeddings of width 24"), ({"hidden": D}, None)):
        path = calibration(tmp_path / "c.json", [good], **changed)
        if message is None:
            assert len(read_calibration(path).classes) == 1
        else:
            with pytest.raises(ValueError, match=f"{message}; this model has 90 of width 24"):
                chosen(lens(classes=path), given.tokens())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json' is no file"):
        chosen(lens(classes="nowhere.json"), given.tokens())
    (tmp_path / "text").write_text("no json")
    (tmp_path / "list").write_text("[1]")
    for name, message in (("text", "no JSON"), ("list", "not written by 'vtc embedlens'")):
        with pytest.raises(ValueError, match=message):
            chosen(lens(classes=str(tmp_path / name)), given.tokens())
    for bad, message in (
        (("alive", drawn(1)[0], 0.5), "none of sink, dead"),
        (("dead", drawn(1)[0][:5], 0.5), r"24 numbers, not all zero; it is \[5\]"),
        (("dead", torch.zeros(D), 0.5), "not all zero"),
        (("dead", drawn(1)[0], 1.5), "out of range"),
    ):
        with pytest.raises(ValueError, match=f"damaged.*{message}"):
            read_calibration(calibration(tmp_path / "bad.json", [bad]))
    (tmp_path / "part.json").write_text(json.dumps({"format": FORMAT, "vocabulary_size": V, "classes": []}))
    with pytest.raises(ValueError, match=r"damaged \(KeyError: 'hidden_size'"):
        read_calibration(str(tmp_path / "part.json"))


def test_a_changed_file_is_read_again(tmp_path):
    path = calibration(tmp_path / "c.json", [])
    assert read_calibration(path).classes == ()
    calibration(tmp_path / "c.json", [("sink", drawn(1)[0], 0.5)])
    os.utime(path, ns=(1, 1))
    assert len(read_calibration(path).classes) == 1


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"sink": (1, -2)}, ValueError, "embedlens.sink=.*ints >= 0"),
        ({"dead": "igh"}, TypeError, "embedlens.dead='igh'"),
        ({"dead": (True,)}, TypeError, "embedlens.dead=.*a tuple of ints"),
        ({"top": 0}, ValueError, "embedlens.top=0"),
        ({"rest": "luck"}, ValueError, "embedlens.rest='luck'; allowed are diversity, norm"),
        ({"classes": 3}, TypeError, "embedlens.classes=3 .*a string"),
        ({"classes": "c.json", "dead": (1,)}, ValueError, "exclude each other"),
    ],
)
def test_bad_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message):
        vtc.parse("embedlens", **params)


def test_ids_that_are_none_and_models_without_known_classes_are_told_at_the_first_prefill():
    model, inputs = copy.deepcopy(tiny("llava")), prompt("llava", "one").inputs
    plain = model(**inputs).logits
    for params, message in (
        ({"dead": (5, 100)}, r"ids 0 to 99; \[100\]"),
        ({}, r"100 embeddings of width 64.*vtc embedl"),
    ):
        with vtc.compressed(model, "embedlens", keep=0.5, **params), pytest.raises(ValueError, match=message):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)


def test_the_published_ids_are_taken_on_llava_s_table():
    g = torch.Generator().manual_seed(0)
    table = torch.randn(32064, 4096, generator=g)
    x = torch.stack([table[i] for i in (1141, 5, 26673, 30296, 1142)])
    assert check_selection(lens(top=1), Spans([x], [3], table=table), alone=False) == [[1, 4]]


def test_what_comes_with_vtc_is_of_the_bundled_model_as_it_is():
    """``vtc embedlens --output pruners/calibrations/bundled.json`` makes it anew for another bundled model."""
    [one] = shipped()
    loaded = load_model()
    assert json.loads((SHIPPED / "bundled.json").read_text())["identity"] == loaded.identity
    assert (one.vocabulary, one.hidden) == tuple(loaded.model.get_input_embeddings().weight.shape)
    assert [c.kind for c in one.classes] == ["dead", "dead"]


# ------------------------------------------------------------------ the table on models
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_is_the_model_s_own(family):
    model = tiny(family)
    parts = locate(model)
    table = embeddings(parts)
    own = model.get_input_embeddings()
    assert table.data_ptr() == own.weight.data_ptr(), "no copy"
    assert not table.requires_grad
    assert vocabulary_size(parts) == len(table)
    some = torch.tensor([3, 40, 99])
    assert torch.allclose(normalize(own(some), dim=-1), normalize(table[some], dim=-1), atol=1e-6)


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_the_table_under_accelerates_offloading(family, how, tmp_path):
    model = copy.deepcopy(tiny(family))
    want, inputs = embeddings(locate(model)).clone(), prompt(family, "one").inputs
    setting = {"sink": tuple(range(5, 20)), "dead": tuple(range(20, 60))}
    with vtc.compressed(model, "embedlens", keep=0.4, **setting):
        logits, kept = model(**inputs).logits, model.vtc.report.steps[-1].kept
    device = torch.device("cpu")
    if how == "cpu":
        model = cpu_offload(model, execution_device=device)
    else:
        model = disk_offload(model, str(tmp_path), execution_device=device)
    parts = locate(model)
    assert model.get_input_embeddings().weight.is_meta
    assert torch.equal(embeddings(parts), want)
    assert vocabulary_size(parts) == len(want)
    assert model.get_input_embeddings().weight.is_meta, "left as it was"
    with vtc.compressed(model, "embedlens", keep=0.4, **setting):
        assert torch.allclose(model(**inputs).logits, logits, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(model.vtc.report.steps[-1].kept, kept, strict=True))


def test_a_model_without_a_table_says_so():
    parts = locate(copy.deepcopy(tiny("llava")))
    parts.lm.embed_tokens = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match=r"no input embedding table \[V, D\].*Identity"):
        embeddings(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_it_without_keep_and_in_a_pipeline(family):
    model = tiny(family)
    shape = shapes_of(FAMILIES[family], ("ragged", "one"))[0]
    with vtc.compressed(model, "embedlens(sink=(5, 6, 7), dead=(20, 21, 22, 23)) + random(layer=2, keep=3)"):
        model(**prompt(family, shape).inputs)
        report = model.vtc.report
    before, alive = [len(s.columns) for s in report.spans], [len(k) for k in report.steps[0].kept]
    assert all(1 <= k <= n for k, n in zip(alive, before, strict=True))
    assert sum(alive) < sum(before)
    assert [len(k) for k in report.steps[1].kept] == [min(3, n) for n in alive]
