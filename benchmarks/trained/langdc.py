"""LangDC on the bundled model: ``OMP_NUM_THREADS=1 python benchmarks/trained/langdc.py --out DIR``.

First the captioner, a copy of the bundled language model, learns to list what short clips show, on ``--caption-clips``
of them, those of the arms among them (of few it learns the captions by heart). Then arms train projector and language
model for equal steps on the same clips and questions: pooled tokens with captions, as many pooled tokens as that comes
to on average, and the same pooled tokens without captions. All answer about held-out clips.
A killed run goes on; ``--table`` writes what is there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clips import FRAMES, HELD_OUT, PATCHES, SIDE, TRAINING, Clips, tokens_of
from packed import Descent
from scipy.stats import spearmanr
from shared_cells import accuracy, gap
from tokenflex import LM_RATE, RATE, load
from torch import Tensor, nn

from vtc.eval.files.atomic import write_atomic
from vtc.eval.statistics.paired import Questions
from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place, run_steps
from vtc.eval.train.compressor.first_captioner import first_captioner
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import NO_TARGET, PackedQuestions, pack
from vtc.eval.train.scenes.vocabulary import ASSISTANT_ID, EOS_ID, PAD_ID, build_tokenizer
from vtc.models.layout.model_parts import locate
from vtc.pruners.langdc import IGNORED, LangDC, SegmentCaptions
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.tokenflex import pooling

POOLED = 16  # tokens of a frame
LONGEST = 48
CAPTION_RATE = 5e-4
AT_ONCE = 2  # clips of a step
LANGDC, MORE, LESS = "langdc", "pool, as many tokens", "pool, without captions"
UNTRAINED = "pool, as many tokens, untrained"
Tokens = Callable[[Clips, int], tuple[Tensor, Tensor]]  # clip -> tokens [k, D], their places [k]


def new_network(model: nn.Module) -> tuple[LangDC, SegmentCaptions]:
    """The method with the network that its training begins with, as ``vtc train langdc`` does."""
    pruner = LangDC(keep=POOLED, weights="untrained")
    sizes, weights = first_captioner(locate(model), ASSISTANT_ID, EOS_ID, PAD_ID)
    pruner.start = {**sizes, "frames": FRAMES, "longest": LONGEST}, weights
    network = pruner.network(tokens_of(torch.zeros(1, FRAMES, PATCHES, 192), torch.zeros(1, FRAMES, PATCHES, 192), 1))
    assert isinstance(network, SegmentCaptions)
    pruner.use(network, pruner.sizes)
    return pruner, network


def step_clips(seed: int, step: int, count: int) -> list[int]:
    """The clips of a step: every one once before any comes again."""
    found = []
    for n in range(step * AT_ONCE, (step + 1) * AT_ONCE):
        order = list(range(count))
        random.Random(f"langdc-study/{seed}/order/{n // count}").shuffle(order)
        found.append(order[n % count])
    return found


def train_captioner(folder: Path, pruner: LangDC, network: SegmentCaptions, clips: Clips, steps: int) -> None:
    """The captioner and what it looks through learn captions."""
    learning = LangDC.learning(network, "caption")
    descent = Descent([(learning, CAPTION_RATE)], steps)

    def train_step(step: int) -> dict[str, float]:
        chosen = step_clips(0, step, len(clips.clips))
        captions = [clips.caption(i) for i in chosen]
        network.taught = nn.utils.rnn.pad_sequence(captions, batch_first=True, padding_value=IGNORED)
        features = clips.features[chosen].float()
        pruner.select(tokens_of(features, features, POOLED), POOLED)
        assert network.loss is not None
        loss = network.loss
        descent.step(loss, step)
        return {"loss": loss.item()}

    place = Place(folder, Ranks(), save_seconds=60, log_every=20)
    run_steps(place, "captioner", steps, train_step, {"network": network, "optimizer": descent})
    network.taught = None


@torch.no_grad()
def captions_of(
    folder: Path, of: str, pruner: LangDC, network: SegmentCaptions, clips: Clips
) -> tuple[list[Tensor], list[list[int]]]:
    """The captioner's states of each clip's caption, `[T, width]`, before ``post``, and its ids; made once."""
    file = folder / f"captions-{of}.pt"
    if not file.exists():
        post, say, ids = network.post, network.captioner.say, []

        def heard(*given: Any) -> Any:
            found = say(*given)
            ids.append(found[1][0].tolist())
            return found

        network.post, network.captioner.say = nn.Identity(), heard  # type: ignore[method-assign]
        states = []
        for i in range(len(clips.clips)):
            features = clips.features[[i]].float()
            states += pruner._captions(tokens_of(features, features, POOLED), [list(range(FRAMES))])
        network.post, network.captioner.say = post, say  # type: ignore[method-assign]
        torch.save((states, ids), file)
    found: tuple[list[Tensor], list[list[int]]] = torch.load(file, weights_only=True)
    return found


class Captioned(LangDC):
    """The method with captions that are there already."""

    states: Tensor

    def _captions(self, tokens: Any, clips: Any) -> list[Tensor]:
        network = self.network(tokens)
        assert isinstance(network, SegmentCaptions)
        return [network.post(self.states)]


def with_captions(model: nn.Module, network: SegmentCaptions, said: dict[int, list[Tensor]], sizes: Any) -> Tokens:
    """Tokens of LangDC."""
    pruner = Captioned(keep=POOLED, weights="untrained")
    pruner.use(network, sizes)

    def tokens(clips: Clips, i: int) -> tuple[Tensor, Tensor]:
        features = clips.features[[i]].float()
        pruner.states = said[id(clips)][i]
        found = pruner.select(tokens_of(features, project(model, features), POOLED), POOLED)
        there = found.index >= 0
        return found.features[there], (found.index + torch.arange(FRAMES)[:, None] * PATCHES)[there]

    return tokens


def pooled(model: nn.Module, counts: list[int]) -> Tokens:
    """Average pooling of each frame to its count."""
    made = [pooling(Layout((Grid(SIDE, SIDE),)), PATCHES, k) for k in counts]

    def tokens(clips: Clips, i: int) -> tuple[Tensor, Tensor]:
        frames = project(model, clips.features[i].float())
        found = [torch.from_numpy(w).float() @ x for (w, _), x in zip(made, frames, strict=True)]
        places = [torch.from_numpy(at) + PATCHES * f for f, (_, at) in enumerate(made)]
        return torch.cat(found), torch.cat(places)

    return tokens


def project(model: Any, features: Tensor) -> Tensor:
    """Through the model's projector."""
    found: Tensor = model.model.multi_modal_projector(features)
    return found


def logits_of(model: Any, tokens: Tensor, places: Tensor, packed: PackedQuestions) -> Tensor:
    """At every position that has a target; text stands behind all frames."""
    moved = replace(packed, positions=packed.positions + PATCHES * (FRAMES - 1))
    return answer_logits(model, tokens[None], places, moved)


def train_arm(folder: Path, name: str, model: Any, tokens: Tokens, post: nn.Module | None, clips: Clips,
              steps: int, seed: int) -> None:  # fmt: skip
    """Projector, language model and ``post`` learn to answer."""
    parts = {"lm": model.model.language_model, "head": model.lm_head, "projector": model.model.multi_modal_projector}
    parts |= {"post": post} if post is not None else {}
    fresh = [*parts["projector"].parameters(), *(post.parameters() if post is not None else ())]
    language = [*parts["lm"].parameters(), *parts["head"].parameters()]
    for weight in (*fresh, *language):
        weight.requires_grad_(True)
    descent = Descent([(fresh, RATE), (language, LM_RATE)], steps)

    def train_step(step: int) -> dict[str, float]:
        losses, right = [], []
        for i in step_clips(seed, step, len(clips.clips)):
            packed = pack([clips.questions[i]])
            logits = logits_of(model, *tokens(clips, i), packed)
            targets = packed.targets[packed.targets != NO_TARGET]
            losses.append(F.cross_entropy(logits, targets))
            right.append((logits.argmax(-1) == targets).float().mean().item())
        loss = torch.stack(losses).mean()
        descent.step(loss, step)
        return {"loss": loss.item(), "right": float(np.mean(right))}

    place = Place(folder, Ranks(), save_seconds=60, log_every=20)
    run_steps(place, name, steps, train_step, {**parts, "optimizer": descent})


@torch.no_grad()
def answered(model: Any, tokens: Tokens, clips: Clips) -> dict[str, float]:
    """1 or 0 of every question about every clip."""
    scores = {}
    for i, asked in enumerate(clips.questions):
        packed = pack([asked])
        right = torch.zeros_like(packed.targets, dtype=torch.bool)
        known = packed.targets != NO_TARGET
        right[known] = logits_of(model, *tokens(clips, i), packed).argmax(-1) == packed.targets[known]
        for j, (start, end) in enumerate(packed.spans[0]):
            scores[f"{i}/{j}"] = float(right[0, start:end].all())
    return scores


def length_figures(entities: list[int], lengths: list[int], reps: int = 2000) -> tuple[float, float, float]:
    """Spearman's correlation of tokens with entities, and a 95% interval of a bootstrap over clips."""
    x, rng = np.array([entities, lengths]), np.random.default_rng(0)
    drawn = [spearmanr(*x[:, rng.integers(0, x.shape[1], x.shape[1])]).statistic for _ in range(reps)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(spearmanr(*x).statistic), float(low), float(high)


def table(folder: Path, held: Clips) -> str:
    """All figures that are there."""
    lines = []
    file = folder / "lengths.json"
    if file.exists():
        found = json.loads(file.read_text())
        value, low, high = length_figures(found["entities"], found["lengths"])
        lines.append(
            f"Caption tokens against entities, {len(found['lengths'])} held-out clips: Spearman {value:.2f} "
            f"[{low:.2f}, {high:.2f}]; {min(found['lengths'])} to {max(found['lengths'])} tokens, "
            f"{np.mean(found['lengths']):.1f} on average; entities named: {found['named']:.0%} of those shown, "
            f"and {found['wrong']:.0%} of those named are not shown."
        )
    asked = {f"{i}/{j}": (i, q.task) for i, row in enumerate(held.questions) for j, q in enumerate(row)}
    judge = Questions({q: i for q, (i, _) in asked.items()}, {q: t for q, (_, t) in asked.items()})
    runs = {f.stem.removeprefix("answers-"): json.loads(f.read_text()) for f in sorted(folder.glob("answers-*.json"))}
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        by_arm.setdefault(run["arm"], []).append(run)
        assert name
    if by_arm:
        lines += ["", "| arm | tokens | seeds | accuracy | langdc against it, points [95%] |", "|---|---|---|---|---|"]
    for arm, of_seeds in by_arm.items():
        scores = [r["scores"] for r in of_seeds]
        against = ""
        if arm != LANGDC and LANGDC in by_arm:
            against = gap(judge, [r["scores"] for r in by_arm[LANGDC]], scores)
        tokens = of_seeds[0]["tokens"]
        lines.append(f"| {arm} | {tokens:.1f} | {len(scores)} | {accuracy(judge, scores)} | {against} |")
    return "\n".join(lines) + "\n"


def named(said: str, clip: Any) -> tuple[int, int, int]:
    """Entities that a caption names rightly, shown ones, and named ones in all; an entity is its three words."""
    words = said.split()
    found = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
    shown = {
        f"{e.color} plate {e.label}" if e.kind == "plate" else f"{e.label} {e.color} {e.shape}" for e in clip.shown
    }
    return len(shown & {*found}), len(shown), round(len(words) / 3)


def main() -> None:
    """Train, answer, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--caption-steps", type=int, default=4500)
    parser.add_argument("--caption-clips", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    stock = load()
    held = Clips.drawn(stock, folder, "held-out", HELD_OUT)
    if not options.table:
        study(folder, options, stock, held)
    found = table(folder, held)
    write_atomic(folder / "table.md", found)
    print(found)


def study(folder: Path, options: argparse.Namespace, stock: nn.Module, held: Clips) -> None:
    """Everything that is not there yet."""
    pruner, network = new_network(stock)
    shown = Clips.drawn(stock, folder, "training", options.caption_clips)
    train_captioner(folder, pruner, network, shown, options.caption_steps)
    network.requires_grad_(False)
    clips = Clips.drawn(stock, folder, "training", TRAINING)
    states, ids = captions_of(folder, "held-out", pruner, network, held)
    write_lengths(folder, held, states, ids)
    said = {id(held): states, id(clips): captions_of(folder, "training", pruner, network, clips)[0]}
    mean = FRAMES * POOLED + float(np.mean([len(s) for s in said[id(clips)]]))
    each, more = divmod(round(mean), FRAMES)
    counts = [each + (i < more) for i in range(FRAMES)]
    for seed in options.seeds:
        for arm in (LANGDC, MORE, LESS, UNTRAINED):
            file = folder / f"answers-{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            if file.exists() or (arm == UNTRAINED and seed):
                continue
            model, post = load(), None
            if arm == LANGDC:
                torch.manual_seed(seed)
                _, own = new_network(model)
                post = own.post
                tokens = with_captions(model, own, said, pruner.sizes)
            else:
                tokens = pooled(model, [POOLED] * FRAMES if arm == LESS else counts)
            if arm != UNTRAINED:
                train_arm(folder, file.stem.removeprefix("answers-"), model, tokens, post, clips, options.steps, seed)
            with torch.no_grad():
                used = float(np.mean([len(tokens(held, i)[1]) for i in range(len(held.clips))]))
            scores = answered(model, tokens, held)
            write_atomic(file, json.dumps({"arm": arm, "tokens": used, "scores": scores}))
            print(f"{arm}, seed {seed}: {100 * np.mean(list(scores.values())):.1f}% of {len(scores)}", flush=True)


def write_lengths(folder: Path, held: Clips, states: list[Tensor], ids: list[list[int]]) -> None:
    """How long captions are, how much is shown, and what of it they name."""
    tokenizer = build_tokenizer()
    texts = [tokenizer.decode([t for t in row if t not in (EOS_ID, PAD_ID)]) for row in ids]
    right, shown, there = map(sum, zip(*(named(t, c) for t, c in zip(texts, held.clips, strict=True)), strict=True))
    entities, lengths = [held.entities(i) for i in range(len(held.clips))], [len(s) for s in states]
    found = {"entities": entities, "lengths": lengths, "captions": texts, "named": right / shown}
    write_atomic(folder / "lengths.json", json.dumps({**found, "wrong": 1 - right / max(1, there)}))
    print(table(folder, held), flush=True)


if __name__ == "__main__":
    main()
