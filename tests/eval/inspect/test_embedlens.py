"""The calibration of EmbedLens: planted classes are found and nothing else, the numbers by hand, and the command."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_world import TOKENS, png, world
from PIL import Image
from torch.nn.functional import normalize

import vtc
from vtc.commands.main import main
from vtc.eval.inspect.embedlens import across, best_threshold, calibrate
from vtc.eval.inspect.embedlens_job import pictures
from vtc.eval.inspect.options import Rules
from vtc.eval.inspect.token_classes import COLOURS, DEAD, SINK, draw_classes, draw_legend, find_classes, label_maps
from vtc.eval.inspect.watch_projected_tokens import features_of, table_of
from vtc.eval.tasks.media.images import open_image
from vtc.eval.vlm.loading import load_model
from vtc.pruners.embedlens import EmbedLens
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.vocabulary import read_calibration

V, D, IMAGES, TOKENS_EACH = 200, 32, 24, 60


def planted(seed, sinks, dead, images=IMAGES, scale=1.0):
    """Random tokens; `sinks` ids are the rows themselves but for rounding, `dead` ones rows with noise."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(V, D, generator=g)
    features = []
    for _ in range(images):
        x = torch.randn(TOKENS_EACH, D, generator=g)
        at = 0
        for i in sinks:
            x[at : at + 2] = 5 * table[i] + 0.02 * torch.randn(2, D, generator=g)
            at += 2
        for i in dead:
            many = int(torch.randint(8, 13, (1,), generator=g))
            x[at : at + many] = table[i] + 0.45 * torch.randn(many, D, generator=g)
            at += many
        features.append(scale * x[torch.randperm(TOKENS_EACH, generator=g)])
    return features, table


# drawn by number, not by hypothesis, whose draws change with any file: a stray random token may reach the threshold
@pytest.mark.parametrize("seed", range(20))
def test_planted_classes_are_found_and_nothing_else(seed):
    draw = random.Random(seed)
    chosen, large = draw.sample(range(V), draw.randint(0, 4)), draw.randint(0, 2)
    scale = draw.choice([1.0, 0.01])
    dead, sinks = chosen[:large], chosen[large:]
    features, table = planted(seed, sinks, dead, scale=scale)
    found = calibrate(features, table)
    assert sorted(c.group.ids for c in found.classes if c.kind == "sink") == sorted((i,) for i in sinks)
    assert sorted(c.group.ids for c in found.classes if c.kind == "dead") == sorted((i,) for i in dead)
    for c in found.classes:
        row = normalize(table[c.group.ids[0]], dim=0)
        assert c.direction @ row > 0.97
        assert c.found > 0.95
        assert c.false < 0.05
    assert (found.images, found.tokens) == (IMAGES, IMAGES * TOKENS_EACH)
    assert found.share("sink") == pytest.approx(2 * len(sinks) / TOKENS_EACH, abs=0.005)


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_have_no_classes_with_few_words_either(seed):
    g = torch.Generator().manual_seed(seed)
    for vocabulary in (5, 40, V):
        features = [torch.randn(TOKENS_EACH, D, generator=g) for _ in range(IMAGES)]
        found = calibrate(features, torch.randn(vocabulary, D, generator=g))
        assert found.classes == ()
        assert abs(found.cosine) < 0.02
        assert vocabulary > 5 or len(found.others) == 5, "words in every image, and yet no classes"


def test_a_model_whose_tokens_are_all_alike_has_no_classes():
    g = torch.Generator().manual_seed(0)
    table, mean = torch.randn(6, D, generator=g), torch.randn(D, generator=g)
    features = [4 * mean + torch.randn(TOKENS_EACH, D, generator=g) for _ in range(IMAGES)]
    found = calibrate(features, table)
    assert found.cosine > 0.85
    assert found.others[0].cosine > 0.85
    assert found.classes == ()


def test_words_of_one_cluster_are_one_class():
    g = torch.Generator().manual_seed(3)
    table = torch.randn(V, D, generator=g)
    table[8] = table[7] + 0.1 * torch.randn(D, generator=g)
    features, _ = planted(1, [], [])
    for x in features:
        x[:24] = table[7] + 0.3 * torch.randn(24, D, generator=g)
    [one] = calibrate(features, table).classes
    assert (one.kind, sorted(one.group.ids)) == ("dead", [7, 8])
    assert one.group.share > 0.38


def test_what_is_alike_but_frequent_is_dead_and_what_is_rare_is_nothing():
    features, table = planted(5, [11], [])
    assert [c.kind for c in calibrate(features, table).classes] == ["sink"]
    many = Rules(sink_share=0.01, dead_share=0.01)
    assert [c.kind for c in calibrate(features, table, many).classes] == ["dead"]
    assert calibrate(features, table, Rules(sink_share=0.01)).classes == ()
    with_a_gap = [x if i > 3 else torch.randn_like(x) for i, x in enumerate(features)]
    assert calibrate(with_a_gap, table).classes == ()
    assert [c.kind for c in calibrate(with_a_gap, table, Rules(presence=0.8)).classes] == ["sink"]


def test_mean_cosine_across_images_by_hand():
    g = torch.Generator().manual_seed(0)
    unit = [normalize(torch.randn(n, 5, generator=g).double(), dim=-1) for n in (4, 3, 5)]
    group = [torch.randint(0, 2, (len(u),), generator=g) for u in unit]
    sums = torch.stack([torch.stack([u[m == c].sum(0) for c in (0, 1)]) for u, m in zip(unit, group, strict=True)])
    counts = torch.stack([torch.stack([(m == c).sum() for c in (0, 1)]) for m in group]).double()
    found = across(sums, counts)
    for a, b in itertools.product((0, 1), repeat=2):
        pairs = [
            float(x @ y)
            for i, j in itertools.permutations(range(3), 2)
            for x in unit[i][group[i] == a]
            for y in unit[j][group[j] == b]
        ]
        assert found[a, b].item() == pytest.approx(np.mean(pairs))


def test_the_best_bar():
    cosine = torch.tensor([0.9, 0.2, 0.8, 0.5, 0.4, -0.1])
    member = torch.tensor([True, False, True, False, True, False])
    assert best_threshold(cosine, member) == pytest.approx((0.3, 1.0, 1 / 3), abs=1e-6)
    assert best_threshold(cosine, member & (cosine > 0.6)) == pytest.approx((0.65, 1.0, 0.0))
    assert best_threshold(torch.ones(3), torch.tensor([True, False, True]))[1:] == (1.0, 1.0)
    assert best_threshold(cosine, torch.ones(6, dtype=torch.bool)) == pytest.approx((-0.1, 1.0, 0.0))


def test_refusals():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        calibrate([torch.zeros(3, D)], torch.zeros(4, D))
    with pytest.raises(ValueError, match=r"\[n, 32\] each"):
        calibrate([torch.zeros(3, 5)] * 2, torch.zeros(4, D))
    for rules, message in (({"presence": 0}, "presence=0 is out"), ({"dead_cosine": 0.995}, r"sink-cosine=0\.99 must")):
        with pytest.raises(ValueError, match=message):
            Rules(**rules)


# ------------------------------------------------------------------ on a model
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures in a folder, with something that is none beside them."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "sub").mkdir()
    for i in range(12):
        (place / ("sub" if i % 2 else ".") / f"{i:02}.png").write_bytes(png(i))
    (place / "notes.txt").write_text("no picture")
    return place


@pytest.fixture(scope="module")
def half_black(tmp_path_factory):
    """Pictures whose lower half says nothing."""
    place = tmp_path_factory.mktemp("half")
    for i in range(12):
        pixels = np.array(open_image(png(i)))
        pixels[28:] = 0
        Image.fromarray(pixels).save(place / f"{i}.png")
    return place


def test_pictures_of_folders_and_sets(folder):
    found = pictures(folder, 9)
    assert len(found) == 9
    assert len({name for name, _ in found}) == 9
    assert found[0][1]().size == (56, 56)
    bundled = pictures(None, 20)
    assert bundled[3][1]().mode == "RGB"
    with pytest.raises(ValueError, match=r"3 pictures in .*needs at least 8"):
        pictures(world()[1], 64)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pictures(folder / "none", 64)


def test_features_are_the_projected_ones():
    loaded = load_model(str(world()[0]))
    image = open_image(png(3))
    found = features_of(loaded, image)
    pixels = loaded.processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        want = loaded.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
    assert found.shape == (TOKENS, 32)
    assert torch.allclose(found, want, atol=1e-5)
    assert not hasattr(loaded.model, "vtc"), "left as it was"
    assert table_of(loaded).shape == (len(loaded.processor.tokenizer), 32)


def run(capsys, *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_the_command_calibrates_and_the_method_reads_it(half_black, tmp_path, capsys):
    model, out = world()[0], tmp_path / "c.json"
    loose = ("--presence", 0.5, "--dead-share", 0.01)
    code, text, _ = run(capsys, "embedlens", "--model", model, "--data", half_black, "--output", out, *loose)
    assert code == 0
    assert "Only 12 images" in text
    stored = json.loads(out.read_text())
    assert (stored["hidden_size"], stored["images"], stored["tokens"]) == (32, 12, 12 * TOKENS)
    known = read_calibration(str(out))
    assert len(known.classes) == len(stored["classes"]) > 0
    assert "alive (LLaVA-1.5-7B in the paper" in text
    loaded = load_model(str(model))
    image = open_image(png(3))
    unit = normalize(features_of(loaded, image), dim=-1)
    kinds = [0] * TOKENS
    for c in known.classes[::-1]:
        for i in (unit @ c.direction >= c.threshold).nonzero()[:, 0].tolist():
            kinds[i] = SINK if c.kind == "sink" or kinds[i] == SINK else DEAD
    found, shown = find_classes(loaded, image, str(out))
    assert found.maps[0].flatten().tolist() == kinds
    assert shown[0].size == (56, 56)
    alive = [i for i, kind in enumerate(kinds) if kind == 0]
    with vtc.compressed(loaded.model, f"embedlens(classes='{out}')") as wrapped:
        pixels = loaded.processor(text="<image> what?", images=image, return_tensors="pt")
        wrapped(**pixels)
        kept = wrapped.vtc.report.steps[-1].kept[0].tolist()
    assert kept == alive if alive else len(kept) == 1
    png_file = tmp_path / "classes.png"
    picture = half_black / "0.png"
    code, text, _ = run(capsys, "embedlens", "--model", model, "--image", picture, "--classes", out, "--out", png_file)
    assert code == 0
    assert f"of {TOKENS} visual tokens" in text
    assert Image.open(png_file).size[1] > 480


def test_none_are_said_to_be_none(folder, tmp_path, capsys):
    out = tmp_path / "c.json"
    strict = ("--dead-cosine", 0.98, "--sink-cosine", 1.0)
    code, text, _ = run(capsys, "embedlens", "--model", world()[0], "--data", folder, "--output", out, *strict)
    assert code == 0
    assert "No sinks (cosine >= 1, share <= 15%) and no dead tokens" in text
    assert read_calibration(str(out)).classes == ()


BAD = {
    "no such folder": ("--data", "nowhere"),
    "--images 3 is out of range": ("--images", 3),
    "--output: no such folder": ("--output", "no/c.json"),
    "presence=2.0 is out of range": ("--presence", 2),
    "--classes goes with --image": ("--classes", "c.json"),
    "no such image": ("--image", "nowhere.png"),
    "must end in .png": ("--image", "a.png", "--out", "a.jpg"),
    "--classes: no such file: none.json": ("--image", "a.png", "--classes", "none.json"),
    "does not know the classes of this model": ("--image", "a.png"),
    "better 50 or more that differ": ("--data", "."),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(png(0))
    code, _, err = run(capsys, "embedlens", "--model", world()[0], *BAD[message])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"], "something was left behind"


def test_maps_of_tiles_and_crops_with_newlines_and_padding():
    tiles = Layout((Grid(2, 2), Grid(2, 3, newline="row")))  # ids 0-3, then 4-6 and newline 7, 8-10 and newline 11
    layouts = [tiles, Layout.line(1), Layout((Grid(1, 3),))]
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 8, 9, 10], [0, 1, 2, *[-1] * 7]])
    labels = torch.tensor([[0, 1, 0, 2, 0, 0, 2, 1, 0, 0], [2, 0, 1, *[2] * 7]])
    maps = [m.tolist() for m in label_maps(layouts, [0, 2], labels, ids)]
    assert maps == [[[0, 1], [0, 2]], [[0, 0, 2], [1, 0, 0]], [[0]], [[2, 0, 1]]]


def test_classes_are_tinted_where_they_are_and_alive_ones_left_alone():
    labels = np.zeros((4, 4), dtype=np.int64)
    labels[0, 1], labels[2, 3] = SINK, DEAD
    shown = np.asarray(draw_classes(Image.new("RGB", (8, 8), (120, 120, 120)), labels, 12)).astype(int)
    for row, col in itertools.product(range(4), range(4)):
        patch = shown[row * 12 : row * 12 + 12, col * 12 : col * 12 + 12]
        if labels[row, col] == 0:
            assert (patch == 120).all()
        else:
            want = 0.35 * 120 + 0.65 * np.array(COLOURS[labels[row, col]])
            assert (np.abs(patch - want).max(-1) <= 1).mean() > 0.5
            assert (np.abs(patch - want).max(-1) > 1).any(), "hatched"
    found, _ = find_classes(load_model(str(world()[0])), open_image(png(3)), pruner=EmbedLens(dead=tuple(range(60))))
    assert found.counts["dead"] > 0
    assert sum(found.counts.values()) == TOKENS
    assert found.note.startswith(f"{found.counts['alive']} alive, 0 sink")
    legend = np.asarray(draw_legend(found)).astype(int)
    for colour in COLOURS.values():
        want = 0.35 * 190 + 0.65 * np.array(colour)
        assert (np.abs(legend - want).max(-1) <= 1).any(), "the legend shows every colour"
