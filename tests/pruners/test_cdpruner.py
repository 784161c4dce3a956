"""CDPruner: relevance from embeddings and from a CLIP text encoder."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from greedy_tools import slow_dpp, spans_of
from properties import check_selection
from torch.nn.functional import cosine_similarity, normalize

import vtc
from vtc.bundled_files import BUNDLED
from vtc.pruners.primitives.clip_text import ClipText, segments
from vtc.pruners.signals import TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
BUNDLED_CLIP = BUNDLED / "clip"  # of the bundled model


def test_relevance_by_embeddings_is_the_mean_cosine_with_the_question():
    spans = spans_of((), [10, 6])
    found = vtc.parse("cdpruner")[0].score(spans.tokens())
    for row, (x, words) in enumerate(zip(spans.features, spans.texts[TextEmbeddings()], strict=True)):
        rho = cosine_similarity(x[:, None], words[None], dim=-1).mean(1)
        expected = (rho - rho.min() + 1e-6) / (rho.max() - rho.min())
        assert torch.allclose(found[row, : len(x)], expected, atol=1e-5)


def test_relevance_is_scaled_by_span_or_as_the_authors_do_over_a_sample():
    tokens = spans_of((), [10, 10, 10]).tokens()
    mine, official = vtc.parse("cdpruner")[0], vtc.parse("cdpruner(official=True)")[0]
    alone = mine.score(tokens)
    assert torch.allclose(alone.amin(1), torch.full((3,), 1e-6), atol=1e-5)
    assert torch.equal(official.score(tokens), alone)
    tokens.sample = torch.tensor([0, 0, 1])
    together = official.score(tokens)
    assert together[:2].amin(1).max() > 1e-3
    assert torch.allclose(together[2:], mine.score(tokens)[2:])


@pytest.mark.parametrize("theta", [0.5, 0.99])
def test_theta_sharpens_the_relevance(theta):
    spans = spans_of((), [12], dims=16, keep=5)
    rho = vtc.parse("cdpruner")[0].score(spans.tokens())[0].double().numpy()
    [found] = check_selection(vtc.parse("cdpruner", theta=theta)[0], spans)
    assert found == slow_dpp(spans.features[0].double().numpy(), 5, np.exp(theta / (2 * (1 - theta)) * (rho - 1)))


def test_without_relevance_it_is_a_plain_determinantal_process():
    spans = spans_of((), [14], dims=8, keep=6)
    [found] = check_selection(vtc.parse("cdpruner(relevance=none)")[0], spans)
    assert found == slow_dpp(spans.features[0].double().numpy(), 6, np.ones(14))


@pytest.fixture(scope="module")
def encoder():
    return ClipText(str(BUNDLED_CLIP), torch.device("cpu"))


def test_text_embeddings_are_those_of_the_whole_model(encoder):
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(BUNDLED_CLIP, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_CLIP)
    texts = ["red circle", "how many blue squares are there?"]
    rows = [torch.tensor([[1, *tokenizer(t, add_special_tokens=False)["input_ids"], 3]]) for t in texts]
    expected = [normalize(model.get_text_features(input_ids=row).pooler_output, dim=-1)[0] for row in rows]
    assert torch.allclose(encoder.text(texts), torch.stack(expected), atol=1e-5)
    x = torch.randn(2, 5, 192)
    patches = normalize(model.visual_projection(model.vision_model.post_layernorm(x)), dim=-1)
    assert torch.allclose(encoder.patches(x), patches, atol=1e-5)
    with pytest.raises(ValueError, match="width 192, this model's tower gives 7"):
        encoder.patches(torch.randn(1, 7))


def test_long_questions_are_cut_and_averaged(encoder):
    words = encoder._ids("red circle blue square green star " * 10)
    pieces = segments(words, encoder.length - 2)
    assert [len(p) for p in pieces] == [46] * (len(words) // 46) + [len(words) % 46] * (len(words) % 46 > 0)
    assert len(pieces) > 1
    alone = torch.stack([normalize(encoder._encode(torch.tensor([[1, *p, 3]])), dim=-1)[0] for p in pieces])
    encoder_text = encoder.text(["red circle blue square green star " * 10, "a star"])
    assert torch.allclose(encoder_text[0], alone.mean(0), atol=1e-5)
    assert segments([], 5) == [[]]
    assert encoder.text([""]).isfinite().all()


def test_open_clip_embeds_like_open_clip():
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    made = open_clip.CLIP(**config).eval()
    tools = SimpleNamespace(
        create_model=lambda name, **_: made, get_tokenizer=lambda name: open_clip.SimpleTokenizer(context_length=10)
    )
    patches = normalize(made.visual.ln_post(torch.ones(1, 3, 16)) @ made.visual.proj, dim=-1)
    expected = normalize(made.encode_text(open_clip.SimpleTokenizer(context_length=10)(["a red star"])), dim=-1)
    with mock.patch.dict("sys.modules", open_clip=tools):
        encoder = ClipText("open_clip:tiny/none", torch.device("cpu"))
    assert torch.allclose(encoder.text(["a red star"]), expected, atol=1e-5)
    assert torch.allclose(encoder.patches(torch.ones(1, 3, 16)), patches, atol=1e-5)
    assert encoder.text(["a red star " * 9]).shape == (1, 12)


@pytest.mark.parametrize("name", ["open_clip:ViT-S-32-alt", "open_clip:ViT-S-32-alt/none", "{}/none"])
def test_a_text_encoder_whose_weights_are_not_there_is_named(name, tmp_path):
    """Without its weights open_clip alone would go on with random ones."""
    pytest.importorskip("open_clip")
    name = name.format(tmp_path)
    with pytest.raises(OSError, match=r"can't be loaded; without a network .* needs no CLIP") as error:
        ClipText(name, torch.device("cpu"))
    assert repr(name) in str(error.value)


def test_a_download_that_fails_says_what_to_do():
    def fail(name, **options):
        asked.append((name, options["pretrained"]))
        raise RuntimeError("Failed to download")

    asked, tools = [], SimpleNamespace(create_model=fail)
    names = {"ViT-L-14-336/openai": ("ViT-L-14-336", "openai"), "hf-hub:a/b": ("hf-hub:a/b", None)}
    with mock.patch.dict("sys.modules", open_clip=tools):
        for name in names:
            with pytest.raises(OSError, match=r"without a network .* Failed to download"):
                ClipText(f"open_clip:{name}", torch.device("cpu"))
    assert asked == list(names.values())
    with mock.patch.dict("sys.modules", open_clip=None), pytest.raises(ImportError, match="pip install open_clip"):
        ClipText("open_clip:ViT-L-14-336/openai", torch.device("cpu"))


def test_relevance_by_clip_on_the_bundled_model():
    """The question's words reach CLIP, the patches go through its projection, and low similarity is relevant."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

    folder = BUNDLED_CLIP.parent / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    clip = CLIPModel.from_pretrained(BUNDLED_CLIP, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": "what color is the circle?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pixels = np.random.default_rng(0).integers(0, 255, (336, 336, 3), dtype=np.uint8)
    inputs = processor(images=[pixels], text=[text], return_tensors="pt")
    spec, asked, embed = f"cdpruner(text_encoder={str(BUNDLED_CLIP)!r}, keep=4)", [], ClipText.text

    def listen(self, texts):
        asked.append(list(texts))
        return embed(self, texts)

    with mock.patch.object(ClipText, "text", listen), vtc.compressed(model, spec):
        model(**inputs)
        [kept] = model.vtc.report.steps[-1].kept
    [[question]] = asked
    assert "what color is the circle" in question
    states = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
    words = processor.tokenizer(question, add_special_tokens=False)["input_ids"]
    assert len(words) <= 46
    words = clip.get_text_features(input_ids=torch.tensor([[1, *words, 3]])).pooler_output
    rho = -cosine_similarity(patches, words)
    rho = (rho - rho.min() + 1e-6) / (rho.max() - rho.min())
    [features] = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    expected = slow_dpp(features.double().numpy(), 4, rho.double().numpy())
    assert kept.tolist() == sorted(expected)
