"""Options of a training job, and what is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.bundled_files import bundled_data
from vtc.eval.terminal.option_checks import check_file
from vtc.pruners.method_modules import TRAINED

CAPTION = "caption"
STAGES = {"align": ("compressor",), "sft": ("compressor", "projector", "lm"), CAPTION: ("compressor",)}
CAPTIONING = ("langdc",)  # methods with a captioner, known before torch is imported
PARTS = ("compressor", "projector", "lm", "lora")


@dataclass
class CompressorOptions:
    """Options of a training job; the command line's defaults.

    ``data`` and ``tasks`` say what is asked, as for ``vtc bench``; the bundled model alone has scenes of its own,
    drawn by ``seed``. ``train`` are the parts that learn (None: those of ``stage``). ``counts`` and ``shares`` are the
    tokens of a step and how often they are drawn (None: the method's own), ``keep`` a fixed number in their place.
    ``stop_after`` ends the process after so many steps, as a kill would.
    """

    method: str
    model: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    output: Path | None = None
    weights: str | None = None
    stage: str = "sft"
    train: Sequence[str] | None = None
    keep: int | None = None
    counts: Sequence[int] | None = None
    shares: Sequence[float] | None = None
    steps: int = 300
    batch_size: int = 4
    accumulate: int = 1
    rate: float = 1e-3
    lm_rate: float = 2e-5
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    save_every: int = 50
    device: str = "auto"
    arguments: Sequence[str] | None = None
    stop_after: int | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What learns."""
        return tuple(self.train) if self.train is not None else STAGES[self.stage]


def check_options(options: CompressorOptions) -> None:
    """Refuse options that are wrong by themselves.

    Raises
    ------
    ValueError
        The message names the option.
    """
    if options.method not in TRAINED:
        raise ValueError(f"{options.method!r} has no network to train; vtc train takes {', '.join(TRAINED)}, explainer")
    if options.stage not in STAGES:
        raise ValueError(f"--stage {options.stage!r} is none of {', '.join(STAGES)}")
    if options.stage == CAPTION and (options.method not in CAPTIONING or options.parts != STAGES[CAPTION]):
        raise ValueError(
            f"--stage caption trains the captioner of {', '.join(CAPTIONING)} and nothing else, not "
            f"{','.join(options.parts)} of {options.method}"
        )
    for name in ("limit", "keep", "steps", "batch_size", "accumulate", "save_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: it must be at least 1")
    for name in ("rate", "lm_rate"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} is out of range: it must be above 0")
    if options.weights is not None and not Path(options.weights).is_dir():
        check_file("--weights", Path(options.weights))
    _check_parts(options.parts)
    _check_counts(options)
    if options.data is not None and options.data.resolve() == bundled_data().resolve():
        raise ValueError("the bundled evaluation set is what methods are measured on, so nothing is trained on it")
    if options.model is not None and options.data is None and not options.tasks:
        raise ValueError("--model needs questions that it can be asked: give --data FOLDER or --tasks")


def _check_parts(parts: Sequence[str]) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"--train {unknown[0] if unknown else ''!r} is none of {', '.join(PARTS)}")
    if "lora" in parts and {"lm", "projector"} & {*parts}:
        raise ValueError(
            "--train lora leaves the model's own weights as they are, because an adapter's folder holds none of them: "
            "take compressor,lora, or compressor,projector,lm"
        )


def _check_counts(options: CompressorOptions) -> None:
    counts, shares = options.counts, options.shares
    if options.keep is not None and counts is not None:
        raise ValueError("--keep and --counts exclude each other: one number for all steps, or several to draw from")
    if shares is not None and (counts is None or len(shares) != len(counts)):
        raise ValueError("--shares says how often each of --counts is drawn: give as many")
    if counts is not None and (not counts or min(counts) < 1):
        raise ValueError(f"--counts {','.join(map(str, counts))}: they must be at least 1")
    if shares is not None and (min(shares) < 0 or not sum(shares) > 0):
        raise ValueError(f"--shares {','.join(map(str, shares))}: they must not be negative, nor all 0")
