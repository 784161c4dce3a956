"""``vtc compare-selections``: the overlap by hand and by counting, the words, the picture, and the command."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from bench_world import TOKENS, png, save_data, world
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtc.commands.main import main
from vtc.eval.inspect.compare_job import mask_of
from vtc.eval.inspect.kept_tokens import Kept, find_kept
from vtc.eval.inspect.overlap_report import as_json, draw_matrices, in_words, matrices
from vtc.eval.inspect.selection_overlap import compare, overlap
from vtc.eval.tasks.media.images import open_image
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.pruning_settings import make_cell


def mask(n, *kept):
    found = np.zeros(n, dtype=bool)
    found[list(kept)] = True
    return found


def test_an_overlap_by_hand():
    found = overlap(mask(10, 0, 1, 2, 3), mask(10, 2, 3, 4))
    assert found[:4] == (10, 4, 3, 2)
    assert found.iou == pytest.approx(2 / 5)
    assert (found.of_a, found.of_b) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert found.chance == pytest.approx(1.2)
    assert found.z == pytest.approx(0.8 / math.sqrt(4 * 3 * 6 * 7 / (100 * 9)))


@given(st.integers(1, 6), st.data())
@settings(max_examples=30)
def test_chance_is_the_mean_over_all_selections_of_these_sizes(n, data):
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    found = overlap(mask(n, *range(a)), mask(n, *range(b)))
    every = [overlap(mask(n, *range(a)), mask(n, *chosen)) for chosen in itertools.combinations(range(n), b)]
    both = [o.both for o in every]
    assert found.chance == pytest.approx(np.mean(both))
    if a + b:
        assert found.chance_iou == pytest.approx(np.mean([o.iou for o in every]))
    else:
        assert math.isnan(found.iou)
        assert math.isnan(found.chance_iou)
    if np.std(both) > 0:
        assert found.z == pytest.approx((found.both - np.mean(both)) / np.std(both))
    else:
        assert math.isnan(found.z)


def test_selections_of_other_tokens_are_refused():
    for first, second in ((mask(3), mask(4)), (mask(0), mask(0)), (mask(4).reshape(2, 2),) * 2):
        with pytest.raises(ValueError, match="masks of the same tokens"):
            overlap(first, second)
    with pytest.raises(ValueError, match="two settings and an image, got 1 and 1"):
        compare(["a"], [[mask(3, 0)]])


def test_words_for_one_image():
    n, share = 100, "a and b share {} of their tokens where chance gives {}: {}"
    cases = {
        share.format("100%", "10%", "more alike than chance (10.0 times chance, z = +9.9)"): (range(10), range(10)),
        share.format("10%", "10%", "as unlike as chance (1.0 times chance, z = +0.0)"): (
            range(10),
            [0, *range(20, 29)],
        ),
        share.format("0%", "50%", "less alike than chance (0.0 times chance, z = -9.9)"): (range(50), range(50, 100)),
        "b keeps 100% of a's tokens where chance gives 40%, and a keeps 25% of b's (10%): more alike than chance "
        "(2.5 times chance, z = +4.1)": (range(10), range(40)),
        "b keeps 100% of a's tokens where chance gives 100%, and a keeps 10% of b's (10%): one of them leaves no "
        "choice": (range(10), range(100)),
        "a and b share nothing: b keeps no visual token at the end": (range(10), []),
        "a and b: neither keeps anything at the end": ([], []),
    }
    for line, (a, b) in cases.items():
        found = compare(["a", "b"], [[mask(n, *a), mask(n, *b)]])
        assert in_words(found, found.pairs[0]) == line
        json.dumps(as_json(found), allow_nan=False)


def random_masks(seed, images, n, sizes):
    rng = np.random.default_rng(seed)
    return [[mask(n, *rng.permutation(n)[:k]) for k in sizes] for _ in range(images)]


def test_several_images_have_intervals_that_hold_what_they_should():
    masks = random_masks(0, 40, 60, (12, 12, 20))
    for image in masks:
        image[1][:] = image[0]
        image[1][np.flatnonzero(image[0])[:6]] = False  # half of a's, and six others
        image[1][np.flatnonzero(~image[0])[:6]] = True
    found = compare(["a", "b", "c"], masks)
    ab, ac, _ = found.pairs
    assert ab.of_first == pytest.approx((0.5, 0.5, 0.5))
    assert in_words(found, ab).startswith(
        "a and b share 50% [50, 50] of their tokens where chance gives 20%: more alike"
    )
    assert ac.of_first.value == pytest.approx(np.mean([(i[0] & i[2]).sum() / 12 for i in masks]))
    assert ac.of_first.low < 20 / 60 < ac.of_first.high
    assert "as unlike as chance" in in_words(found, ac)
    assert math.isnan(ac.z)
    iou, share, chance = matrices(found)
    assert np.allclose(iou, iou.T)
    assert share[2, 0] == pytest.approx(ac.of_second.value)
    assert (chance[0, 2], chance[2, 0]) == (pytest.approx(20 / 60), pytest.approx(12 / 60))


@pytest.mark.parametrize("images", [1, 20])
def test_random_selections_are_seldom_called_anything_but_chance(images):
    """By z above 3 one image is wrong in under 1%, and an interval over many in about 5%."""
    wrong = 0
    for seed in range(120):
        found = compare(["a", "b"], random_masks(seed, images, 80, (20, 20)))
        wrong += "as unlike as chance" not in in_words(found, found.pairs[0])
    assert wrong <= (3 if images == 1 else 18)


def test_tiles_count_as_one_image():
    kept = Kept("t", [mask(4, 1).reshape(2, 2), mask(6, 0, 5).reshape(2, 3)], 3, 10, "", "")
    assert np.flatnonzero(mask_of(kept)).tolist() == [1, 4, 9]


def test_heat_maps_tell_values_apart():
    found = compare(["a", "b", "c"], [[mask(20, *range(10)), mask(20, *range(9), 19), mask(20, *range(10, 20))]])
    shown = np.asarray(draw_matrices(found)).astype(int)
    colours = {tuple(c) for c in shown.reshape(-1, 3)}
    assert len(colours) > 30
    # a and b are alike, a and c are not: the brightest and the darkest of the map
    assert any(r > 200 and g > 180 and b < 110 for r, g, b in colours), "cividis ends in yellow"
    assert any(r < 20 and b > 60 and b > g for r, g, b in colours), "and begins in dark blue"


def test_the_end_counts_where_a_pipeline_prunes_twice():
    loaded, picture = load_model(str(world()[0])), open_image(png(3))
    twice = "uniform(keep=12) + random(layer=2, keep=4, seed=1)"
    masks = []
    for spec in (twice, "uniform(keep=12)"):
        kept, _ = find_kept(loaded, make_cell(spec, None), picture, "what?", 1)
        masks.append(mask_of(kept))
    found = overlap(*masks)
    assert found[:4] == (TOKENS, 4, 12, 4)


def run(capsys, *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


COMMAND = ("compare-selections", "--pruner", "uniform", "--pruner", "fastv")


def test_the_command_on_one_picture(tmp_path: Path, capsys):
    (tmp_path / "a.png").write_bytes(png(2))
    out = tmp_path / "both.png"
    code, text, err = run(
        capsys, *COMMAND, "--pruner", "pool", "--keep", 5, "--model", world()[0], "--image", tmp_path / "a.png",
        "--out", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    loaded, picture = load_model(str(world()[0])), open_image(png(2))
    kept = [
        mask_of(find_kept(loaded, make_cell(m, 5), picture, "What is in the image?", 1)[0])
        for m in ("uniform", "fastv")
    ]
    assert [int(m.sum()) for m in kept] == [5, 5]
    share = 100 * int((kept[0] & kept[1]).sum()) / 5
    assert f"uniform(keep=5) and fastv(keep=5) share {share:.0f}% of their tokens where chance gives 31%" in text
    assert text.count(" share ") == 4  # a line a pair, and the title
    assert "--images 30" in text
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] > 3 * 480
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100, "not blank"


def test_the_command_on_several_pictures_as_json(tmp_path: Path, capsys):
    data, out = save_data(tmp_path / "data", images=4), tmp_path / "both.png"
    code, text, err = run(
        capsys, *COMMAND, "--keep", 0.5, "--model", world()[0], "--data", data, "--images", 4, "--out", out, "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert (found["images"], found["tokens"]) == (4, TOKENS)
    assert [s["kept"] for s in found["settings"]] == [8, 8]
    [pair] = found["pairs"]
    assert pair["chance"]["share_of_first"] == 0.5
    assert pair["share_of_first"]["low"] <= pair["share_of_first"]["mean"] <= pair["share_of_first"]["high"]
    assert pair["z"] is None
    assert out.is_file()


BAD = {
    "give 2 to 26 methods to compare, got 1": ("--pruner", "uniform(keep=3)"),
    "'uniform(keep=3)' is given twice": ("--pruner", "uniform(keep=3)", "--pruner", "uniform(keep=3)"),
    "needs --keep": ("--pruner", "uniform", "--pruner", "fastv"),
    "Did you mean 'random'": ("--pruner", "randon", "--pruner", "fastv", "--keep", 3),
    "must end in .png": (*COMMAND[1:], "--keep", 3, "--out", "a.jpg"),
    "--out: no such folder": (*COMMAND[1:], "--keep", 3, "--out", "no/a.png"),
    "no such folder: nowhere": (*COMMAND[1:], "--keep", 3, "--data", "nowhere"),
    "--image is one picture": (*COMMAND[1:], "--keep", 3, "--image", "a.png", "--images", 2),
    "--images 0 is out of range: at least 1": (*COMMAND[1:], "--keep", 3, "--images", 0),
    "has 3 pictures": (*COMMAND[1:], "--keep", 3, "--images", 9, "--data", world()[1]),
    "no such image": (*COMMAND[1:], "--keep", 3, "--image", "nowhere.png"),
    "Missing option '--pruner'": (),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "compare-selections", "--model", world()[0], *BAD[message])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was left behind"
