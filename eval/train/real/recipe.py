"""Every number of the adapter's recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vtc.eval.train.scenes.scene import Density


@dataclass(frozen=True)
class RealRecipe:
    """What is drawn, what is trained, and for how long.

    Attributes
    ----------
    scenes, easy : int
        Pictures that are drawn and encoded, once for all: synthetic scenes, and of easy-VQA's training split.
    densities : tuple of (int, Density)
        How full the scenes are up to the one of that number: few things come first.
    align_scenes, align_steps, align_tokens, align_rate
        Before the language model is trained: on so many scenes the projector learns the words for what patches show.
    align_weight : float
        The weight of that loss afterwards.
    look_weight
        The weight of the loss that has some heads look at what is asked about.
    early_weight
        The weight of the answers' loss read off behind those heads already.
    steps, warmup, scenes_per_step, easy_per_step, easy_every, learning_rate
        The projector and the matrices of low rank; a step shows scenes, every `easy_every`-th pictures of easy-VQA.
    window_steps, window, windows_per_step
        From the first of these steps to before the second no whole scenes are shown, but a square of so many patches of
        each, at a place drawn for the step, and only what lies in it is asked about: cheaper, and there is less to
        confuse.
    rank : int
        Rank of what is added to each matrix of the language model.
    shares : dict of str to int
        How many questions of each task are asked about a scene.
    more_steps, more_window_steps, more_shares
        The same once more behind it, see :meth:`more`: the rate rises and falls again.
    """

    seed: int = 0
    scenes: int = 1600
    densities: tuple[tuple[int, Density], ...] = ((1600, Density((12, 22), (5, 8), (1, 4), few_or_many=True)),)
    easy: int = 300
    align_scenes: int = 800
    align_steps: int = 900
    align_tokens: int = 2048
    align_rate: float = 2e-3
    align_weight: float = 0.1
    look_weight: float = 0.5
    early_weight: float = 0.5
    steps: int = 600
    warmup: int = 30
    scenes_per_step: int = 2
    easy_per_step: int = 3
    easy_every: int = 4
    learning_rate: float = 1e-3
    window_steps: tuple[int, int] = (0, 420)
    window: int = 8
    windows_per_step: int = 4
    rank: int = 16
    shares: dict[str, int] = field(
        default_factory=lambda: {
            "color": 5,
            "shape": 5,
            "exist": 3,
            "count": 2,
            "more": 1,
            "spatial": 3,
            "quadrant": 4,
            "reading": 3,
        }
    )
    more_steps: int = 900
    more_window_steps: tuple[int, int] = (0, 540)
    more_shares: dict[str, int] = field(
        default_factory=lambda: {
            "color": 6,
            "shape": 6,
            "exist": 2,
            "count": 1,
            "more": 1,
            "spatial": 3,
            "quadrant": 6,
            "reading": 1,
        }
    )

    def more(self) -> RealRecipe:
        """What the last part does, as a recipe: other steps and shares."""
        return replace(self, steps=self.more_steps, window_steps=self.more_window_steps, shares=self.more_shares)


def tiny_real_recipe(seed: int = 0) -> RealRecipe:
    """A few steps, for tests."""
    return RealRecipe(
        seed=seed,
        scenes=3,
        densities=((3, Density((2, 3), (2, 3), (1, 2))),),
        easy=2,
        align_scenes=1,
        align_steps=2,
        align_tokens=32,
        steps=3,
        warmup=1,
        scenes_per_step=1,
        easy_per_step=1,
        easy_every=3,
        window_steps=(0, 1),
        window=2,
        windows_per_step=2,
        rank=2,
        shares={"color": 2, "exist": 2},
        more_steps=2,
        more_window_steps=(0, 1),
        more_shares={"color": 2},
    )
