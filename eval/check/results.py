"""What a check found: one outcome for each contract, stage and attention implementation, and the exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EXACT, REFUSED, NOT_RUN, WRONG, FAILED = "exact", "refused", "not run", "WRONG", "failed"
PRUNED = "pruned = masked"  # the contract without which a model is not supported
FINE, BROKEN, UNSUPPORTED = 0, 1, 3  # exit codes; 2 is bad input, as everywhere in vtc


@dataclass
class Outcome:
    """One contract under one setting and one attention implementation.

    Attributes
    ----------
    contract, stage, attention : str
        Which.
    status : str
        ``exact``; ``refused`` (vtc says that it can't, and why); ``not run`` (there is nothing to check: transformers
        itself can't); ``WRONG`` (another result than the reference); ``failed`` (any other error).
    why : str
        In words, unless exact.
    difference : float or None
        Largest difference of a logit from the reference.
    """

    contract: str
    stage: str
    attention: str
    status: str
    why: str = ""
    difference: float | None = None


@dataclass
class Result:
    """All outcomes for a model.

    Attributes
    ----------
    model, model_type, family : str
        What was asked for, its ``model_type``, and what vtc calls its family.
    about : str
        What the small model is.
    versions : dict
        Of vtc, torch and transformers.
    """

    model: str
    model_type: str
    family: str
    about: str
    versions: dict[str, str]
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, status: str) -> int:
        """How many outcomes have a status."""
        return sum(o.status == status for o in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0: all that vtc does not refuse is exact; 1: something is WRONG or failed; 3: nowhere was pruning exact."""
        if self.count(WRONG) or self.count(FAILED):
            return BROKEN
        return FINE if any(o.contract == PRUNED and o.status == EXACT for o in self.outcomes) else UNSUPPORTED

    def as_json(self) -> dict[str, Any]:
        """All of it, and the exit code."""
        return {**asdict(self), "exit_code": self.exit_code}

    @property
    def verdict(self) -> str:
        """One sentence."""
        parts = [f"{n} {status}" for status in (WRONG, FAILED, EXACT, REFUSED, NOT_RUN) if (n := self.count(status))]
        return {
            FINE: "vtc works with this model and this transformers",
            BROKEN: "vtc is BROKEN with this model and this transformers",
            UNSUPPORTED: "vtc does not support this with this transformers",
        }[self.exit_code] + f": {', '.join(parts) or 'nothing to check'}."
