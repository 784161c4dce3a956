"""Pictures whose thumbnail and crops are spans of their own: how they are told, and how a method sees them as one."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from adaptive_pruner import Of
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from contracts import outcome
from methods import Setting, cells
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GotOcr2ImageProcessor, Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from versions import mixes_pictures
from zoo import FAMILIES, prompt, tiny
from zoo.media import grid_of

import vtc
from vtc.eval.vlm.encode_once import join_outputs, reuses_encoder
from vtc.models.layout.crops_by_family import Picture, Sample, join_small, marked, small_crops, tile_grid, touching
from vtc.pruners.layout import Grid
from vtc.pruners.signals import EncoderAttention, EncoderKeys, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
CUT = ("internvl", "idefics3", "smolvlm")


def photo(height: int, width: int, seed: int) -> Tensor:
    """`[3, h, w]` uint8 with large shapes and fine grain."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 9, generator=g)
    whole = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return ((whole + 0.1 * torch.rand(whole.shape, generator=g)).clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize(
    "size",
    [(448, 896), (900, 300), (600, 1000), (1000, 600), (300, 2000), (640, 640), (500, 1500), (1344, 900)],
    ids=str,
)
def test_internvls_tiles_are_told_by_the_stock_processors_pixels(size: tuple[int, int]) -> None:
    made = GotOcr2ImageProcessor(size={"height": 96, "width": 96}, crop_to_patches=True, min_patches=1, max_patches=12)
    pixels = made(photo(*size, seed=sum(size)), crop_to_patches=True, max_patches=12, return_tensors="pt").pixel_values
    across, down = get_optimal_tiled_canvas(size, (96, 96), 1, 12)
    assert len(pixels) == down * across + 1 > 2
    assert tile_grid(small_crops(pixels)) == (down, across)
    # one tile in another one's place, or no thumbnail: no grid looks like it
    assert tile_grid(small_crops(torch.cat([pixels[:-1], pixels[:1]]))) != (down, across)


def test_tiles_that_are_no_picture_have_no_grid() -> None:
    g = torch.Generator().manual_seed(0)
    assert tile_grid(torch.randn(7, 3, 8, 8, generator=g)) is None
    assert tile_grid(torch.ones(7, 3, 8, 8)) is not None, "a blank picture: any grid is right"


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer without merges: each byte is a token, and the marks of pictures are special."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<fake_token_around_image>", "<image>"], pad_token="!"
    )


@pytest.mark.parametrize(("together", "split"), [(True, True), (False, True), (True, False)])
def test_idefics_crops_are_told_by_the_stock_processors_prompt(together: bool, split: bool) -> None:
    settings = {"size": {"longest_edge": 4 * 32}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": split}
    made = Idefics3ImageProcessor(**settings)
    processor = Idefics3Processor(made, bytes_tokenizer(), image_seq_len=4)
    sizes = [(100, 60), (30, 30), (60, 120), (128, 128)]
    pictures = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    info = made([pictures], return_row_col_info=True, return_tensors="pt")
    grids = list(zip(info["rows"][0], info["cols"][0], strict=True))
    assert len(set(grids)) > 2 if split else set(grids) == {(0, 0)}
    text = ("" if together else "\nlook here ").join(["<image>"] * 4)
    ids = processor(text=[f"Which? {text} and then?"], images=[pictures], return_tensors="pt").input_ids[0].tolist()
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    starts = [i for i, t in enumerate(ids) if t == image and ids[i - 1] != image]
    spans = list(range(len(starts)))
    found = marked(Sample(spans, starts, [s + 4 for s in starts], ids, lambda _: None))
    want, at = [], 0
    for rows, cols in grids:
        n = rows * cols
        if n:
            want.append(([at + n, *range(at, at + n)], (rows, cols)))
        at += n + 1
    assert found == want
    assert at == len(spans)


def test_prompts_of_another_form_leave_each_span_alone() -> None:
    def of(ids: list[int], small: Tensor | None = None) -> Sample:
        starts = [i for i, t in enumerate(ids) if t == 9 and (i == 0 or ids[i - 1] != 9)]
        ends = [next((j for j in range(s, len(ids)) if ids[j] != 9), len(ids)) for s in starts]
        return Sample(list(range(len(starts))), starts, ends, ids, lambda _: small)

    assert marked(of([1, 3, 9, 9, 3, 9, 9, 5, 3, 9, 9, 3])) == [([2, 0, 1], (1, 2))]
    for ids in (
        [1, 9, 9, 2, 9, 9, 5, 9, 9, 3],  # no marks between
        [1, 3, 9, 9, 3, 9, 9, 3, 9, 9, 3],  # no line break before the last
        [1, 3, 9, 9, 3, 9, 9, 5, 3, 9, 9, 5, 3, 9, 9, 3],  # rows of different lengths
        [1, 3, 9, 9, 5, 3, 9, 9],  # nothing behind
        [1, 3, 9, 9, 3, 5, 3, 9, 9, 3],  # two pictures
    ):
        assert marked(of(ids)) == []
    sample = of([1, 3, 9, 9, 3, 9, 9, 5, 3, 9, 9, 3])
    sample.ids = None
    assert marked(sample) == []
    assert touching(Sample([4, 5, 6], [2, 4, 6], [4, 6, 8], None, lambda _: None)) == [], "pixels are unknown"
    assert touching(Sample([4, 5, 6], [2, 4, 6], [4, 6, 8], None, lambda _: torch.ones(3, 1, 2, 2)))


def test_small_crops_of_several_calls() -> None:
    a, b = torch.ones(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    assert join_small([a, b]).shape == (3, 3, 8, 8)
    assert join_small([a, None]) is None
    assert join_small([a, torch.ones(1, 3, 4, 4)]) is None
    assert small_crops(torch.ones(2, 5, 3, 64, 64)) is None
    assert small_crops(torch.ones(2, 3, 64, 48)).shape == (2, 3, 32, 32)


def test_a_pictures_ids_and_back() -> None:
    made = Picture.of([7, 3, 4, 5, 6, 8, 9], Grid(2, 3), 3, 2)
    base, mosaic = made.layout.grids
    assert (base.rows, base.cols, mosaic.rows, mosaic.cols, mosaic.cuts) == (2, 3, 6, 6, ((2, 4), (3,)))
    place = made.layout.array
    for j in range(7):
        for own in range(6):
            grid, row, col = place[made.ids[j, own]]
            crop, (r, c) = divmod(j - 1, 2), divmod(own, 3)
            assert (grid, row, col) == ((0, r, c) if j == 0 else (1, 2 * crop[0] + r, 3 * crop[1] + c))
            assert (made.owner[made.ids[j, own]], made.own[made.ids[j, own]]) == (j, own)


@dataclass(kw_only=True, eq=False)
class Greedy(vtc.Pruner):
    """Keeps a row's first tokens: all of the thumbnail before any crop. `last`: its last ones."""

    name: ClassVar[str] = "greedy"
    keep: float = 0.4
    layer: int | None = None
    last: bool = False

    joins_crops: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    __hash__ = object.__hash__

    @property
    def stage(self) -> str:  # type: ignore[override]
        return "input" if self.layer is None else "decoder"

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}-{self.stage}-{'last' if self.last else 'first'}"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        first = torch.arange(k).expand(len(tokens.counts), -1)
        if not self.last:
            return first
        return (torch.tensor(tokens.counts)[:, None] - 1 - first).clamp(min=0)


class Grouped(Greedy):
    """The same, not ragged, at two stops."""

    ragged = False

    def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
        return vtc.Stop("input", None, 0.6), vtc.Stop("decoder", 2, 0.3)


class Halfway(Greedy):
    """The same, each kept token moved half-way to the mean of its row."""

    merges = True

    def select(self, tokens: vtc.VisualTokens, k: int) -> vtc.Merged:  # type: ignore[override]
        index = super().select(tokens, k)
        kept = tokens.features.gather(1, index[..., None].expand(-1, -1, tokens.features.shape[-1]))
        return vtc.Merged(index, (kept + tokens.features.sum(1, keepdim=True) / tokens.valid.sum(1)[:, None, None]) / 2)


class Some(Greedy):
    """As many as the row's place says, -1 strewn between."""

    adaptive_count = True

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        taken = torch.arange(max(tokens.counts)) < torch.tensor([[max(1, n // 3)] for n in tokens.counts])
        return torch.where(taken, torch.arange(max(tokens.counts)), -1).repeat_interleave(2, 1)[:, 1::2]


KINDS = [Greedy(), Greedy(last=True), Greedy(layer=2), Grouped(), Halfway(), Halfway(layer=2, last=True), Some()]
SETTINGS = [Of(m) for m in KINDS]  # type: ignore[arg-type]


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, CUT))
@pytest.mark.parametrize("shape", ["ragged", "sizes"])
def test_pruned_equals_masked(setting: Setting, family: str, shape: str) -> None:
    """Also where a crop keeps nothing at all."""
    pruned_equals_masked(setting, family, shape)
    report = outcome(setting, family, shape).forward_report
    if not setting.pruner.adaptive_count:
        last = 0.3 if isinstance(setting.pruner, Grouped) else 0.4
        assert any(len(k) == 0 for k in report.steps[-1].kept)
        assert report.tokens_kept == sum(max(1, int(last * len(s.columns) + 0.5)) for s in report.spans)


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, CUT))
def test_batch_equals_one_by_one(setting: Setting, family: str) -> None:
    batch_equals_one_by_one(setting, family, "text_row")


@pytest.mark.parametrize("family", CUT)
@pytest.mark.parametrize("shape", ["ragged", "sizes", "touching", "right"])
def test_the_spans_of_each_picture(family: str, shape: str) -> None:
    """The thumbnail is the last span, so the first tokens that `Greedy` keeps are there."""
    given = prompt(family, shape)
    with vtc.compressed(tiny(family), Greedy()) as model:
        model(**given.inputs)
        report = model.vtc.report
    want, at = [], 0
    for media in (m for sample in given.media for m in sample):
        if media.spans > 2 or (media.spans == 2 and family != "internvl"):  # noise has no thumbnail
            want.append([at + media.spans - 1, *range(at, at + media.spans - 1)])
        at += media.spans
    assert report.pictures == want != []
    kept = [k.tolist() for k in report.steps[0].kept]
    for spans in report.pictures:
        n = len(report.spans[spans[0]].columns)
        budget = len(spans) * max(1, int(0.4 * n + 0.5))
        assert kept[spans[0]] == list(range(min(n, budget)))
        assert sum(len(kept[s]) for s in spans) == budget
    with vtc.compressed(tiny(family), "uniform", keep=0.4) as model:
        model(**given.inputs)
        assert model.vtc.report.pictures == []
        assert all(len(k) == max(1, int(0.4 * len(s.columns) + 0.5))
                   for k, s in zip(model.vtc.report.steps[0].kept, model.vtc.report.spans, strict=True))  # fmt: skip


READ = (EncoderAttention(), EncoderKeys(), TextEmbeddings())


@dataclass(kw_only=True, eq=False)
class Spy(Greedy):
    """Notes what it is given."""

    name: ClassVar[str] = "spy"
    joins: bool = True
    signals = READ
    reads_vocabulary: ClassVar[bool] = True

    @property
    def joins_crops(self) -> bool:  # type: ignore[override]
        return self.joins

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen = SimpleNamespace(
            tokens=tokens, reads=[tokens.read(s) for s in READ[:2]], text=tokens.text(READ[2]),
            behind=tokens.text_valid(after=True), signals=tokens.signals, table=tokens.embeddings,
            size=tokens.vocabulary_size,
        )  # fmt: skip
        return super().select(tokens, k)


@pytest.mark.parametrize("family", CUT)
def test_what_a_method_is_given_of_a_picture(family: str) -> None:
    given, seen = prompt(family, "sizes"), {}
    for joins in (False, True):
        spy = Spy(joins=joins)
        with vtc.compressed(tiny(family), spy) as model:
            model(**given.inputs)
            report, layouts = model.vtc.report, model.vtc.report.layouts
        seen[joins] = spy.seen
    alone, whole = seen[False], seen[True]
    in_picture = {s for spans in report.pictures for s in spans}
    units = [*report.pictures, *([i] for i in range(len(report.spans)) if i not in in_picture)]
    units.sort(key=min)
    assert list(whole.tokens.span) == [min(u) for u in units]
    assert whole.tokens.counts == [sum(alone.tokens.counts[i] for i in u) for u in units]
    assert whole.tokens.budgets == [sum(alone.tokens.budgets[i] for i in u) for u in units]
    assert torch.equal(whole.tokens.sample, alone.tokens.sample[[min(u) for u in units]])
    assert torch.equal(whole.text, alone.text)
    assert whole.signals == alone.signals == READ
    assert whole.table is alone.table or torch.equal(whole.table, alone.table)
    assert whole.size == alone.size == len(whole.table)
    assert torch.equal(whole.behind, alone.behind[[max(u) for u in units]])
    for row, spans in enumerate(units):
        n, count = alone.tokens.counts[spans[0]], whole.tokens.counts[row]
        layout = whole.tokens.layouts[row]
        assert whole.tokens.ids[row].tolist() == [*range(count), *[-1] * (max(whole.tokens.counts) - count)]
        _, across = grid_of(len(spans))
        side = layouts[spans[0]].grids[0].rows
        for column in range(count):
            grid, r, c = layout.array[column]
            owner = spans[0] if grid == 0 else spans[1 + r // side * across + c // side]
            own = r % side * side + c % side
            assert n == side * side
            assert torch.equal(whole.tokens.features[row, column], alone.tokens.features[owner, own])
            assert torch.equal(whole.reads[0][row, :, column], alone.reads[0][owner, :, own])
            assert torch.equal(whole.reads[1][row, column], alone.reads[1][owner, own])
        assert (whole.tokens.features[row, count:] == 0).all()
        assert (whole.reads[0][row, :, count:] == 0).all()
        assert (whole.reads[1][row, count:] == 0).all()


def test_beams_know_their_pictures() -> None:
    for family in (family for family in CUT if not mixes_pictures(family)):
        given = prompt(family, "text_row").inputs
        with vtc.compressed(tiny(family), Greedy()) as model:
            model(**given)
            pictures, kept = model.vtc.report.pictures, model.vtc.report.steps[0].kept
            model.generate(**given, max_new_tokens=2, num_beams=2, do_sample=False)
            report = model.vtc.report
            assert len(report.pictures) == 2 * len(pictures) > 0
            assert sum(map(len, report.steps[0].kept)) == 2 * sum(map(len, kept))


@pytest.mark.parametrize("family", CUT)
def test_outputs_of_earlier_calls_know_their_pictures(family: str) -> None:
    """As a sweep hands them in: each sample's pictures encoded by themselves, and joined."""
    given = prompt(family, "text_row")
    with vtc.compressed(tiny(family), Greedy()) as model:
        if not reuses_encoder(model):
            pytest.skip("this version of transformers takes no encoder outputs")
        model(**given.inputs)
        pictures, kept = model.vtc.report.pictures, model.vtc.report.steps[0].kept
        assert pictures
        outputs = []
        for b in (b for b, media in enumerate(given.media) if media):
            alone = given.alone(b).inputs
            pixels = {k: v for k, v in alone.items() if k.startswith("pixel")}
            outputs.append(model.base_model.get_image_features(**pixels, return_dict=True))
        text = {k: v for k, v in given.inputs.items() if not k.startswith("pixel")}
        model(**text, mm_encoder_outputs={"image": join_outputs(outputs)})
        assert model.vtc.report.pictures == pictures
        assert all(torch.equal(a, b) for a, b in zip(model.vtc.report.steps[0].kept, kept, strict=True))


def test_without_token_ids_or_values_each_crop_is_its_own() -> None:
    model, given = tiny("idefics3"), prompt("idefics3", "one").inputs
    embeds = model.get_input_embeddings()(given.pop("input_ids"))
    with vtc.compressed(model, Greedy()):
        model(inputs_embeds=embeds, **given)
        assert model.vtc.report.pictures == []
        assert [len(k) for k in model.vtc.report.steps[0].kept] == [6, 6, 6]


def test_every_family_without_a_rule_has_whole_pictures() -> None:
    for name in ("llava_next", "qwen2_vl", "gemma3"):
        assert name in FAMILIES
        with vtc.compressed(tiny(name), Greedy()) as model:
            model(**prompt(name, "one").inputs)
            assert model.vtc.report.pictures == []
