"""What the parameters of each method are drawn from, for models of six decoder and four encoder layers.

A field that is not named keeps its default now and then and is drawn else; ``LEFT_OUT`` says which never are, and why.
``test_fuzz.py`` fails when a method or a field of it is neither here nor there.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from methods import tiny_explainer

KEEP = st.one_of(
    st.integers(1, 20), st.integers(5, 95).map(lambda n: n / 100), st.sampled_from([0.1, 0.25, 0.5, 1, 1.0])
)
SHARE = st.integers(5, 100).map(lambda n: n / 100)
UNIT = st.integers(0, 20).map(lambda n: n / 20)
FLAG = st.booleans()
SEED = st.integers(0, 5)
LAYER = st.integers(1, 5)
TOWER = st.integers(1, 3)
LAYERS = st.lists(LAYER, min_size=1, max_size=3, unique=True).map(lambda x: tuple(sorted(x)))
IDS = st.lists(st.integers(3, 79), min_size=1, max_size=30, unique=True).map(lambda x: tuple(sorted(x)))
SMALL = st.integers(1, 6)

OFFICIAL = {"official": FLAG}
DIVERSE = {
    "objective": st.sampled_from(["maxsum", "kcenter"]),
    "pivot": st.sampled_from(["auto", "random"]),
    "pivot_seed": SEED,
}
REMOVAL = {"layer": LAYER, "tau": UNIT}
PRUMERGE = {"adaptive": FLAG, **OFFICIAL}

TABLE: dict[str, dict[str, Any]] = {
    "agilepruner": {
        "step": st.sampled_from([0.0, 0.01, 0.3]),
        "tau_max": UNIT,
        "erank_avg": st.sampled_from([1.0, 10.0, 95.0]),
    },
    "budget": {
        "first": st.sampled_from(["divprune", "uniform", "fastv", "pool", "dart", "holov"]),
        "busy": st.sampled_from([0.0, 1.0, 3.0]),
        "usual": st.sampled_from([0.2, 0.68, 1.0]),
        "decay": UNIT,
        "sharp": SMALL,
        "floor": st.integers(0, 20),
    },
    "cdpruner": {
        "relevance": st.sampled_from(["auto", "embeddings", "none"]),
        "theta": st.integers(0, 18).map(lambda n: n / 20),
        "encoder_layer": TOWER,
        "negate": FLAG,
        **OFFICIAL,
    },
    "cls": {"encoder_layer": TOWER},
    "dart": {"layer": LAYER, "pivots": SMALL, "variant": st.sampled_from(["dart", "angelslim"]), **OFFICIAL},
    "deep_random": {
        "first": st.sampled_from(["divprune", "dart", "uniform", "fastv", "cls", "random", "pool"]),
        "layer": LAYER,
        "tail": KEEP,
        "seed": SEED,
        **OFFICIAL,
    },
    "divprune": {},
    "dycoke": {"ratio": UNIT, **OFFICIAL},
    "embedlens": {"sink": IDS, "dead": IDS, "top": SMALL, "rest": st.sampled_from(["diversity", "norm"])},
    "evs": OFFICIAL,
    "explainer": {},
    "fastv": {"layer": LAYER},
    "fastvid": {
        "segments": SMALL,
        "threshold": UNIT,
        "context": UNIT,
        "every": SMALL,
        "weight": UNIT,
        **OFFICIAL,
    },
    "fitprune": {
        "ratios": st.lists(SHARE, min_size=1, max_size=5).map(lambda x: tuple(sorted(x)[::-1])),
        "tokens": st.sampled_from([8, 20, 576]),
    },
    "flowcut": {
        "layer": LAYER,
        "tower": st.integers(10, 40).map(lambda n: n / 10),
        "history": st.integers(0, 9).map(lambda n: n / 10),
        "every": st.integers(1, 3),
        "semantic": FLAG,
        **OFFICIAL,
    },
    "focusllava": {
        "ratio": st.integers(10, 40).map(lambda n: n / 10),
        "layer": LAYER,
        "vision": FLAG,
        "text": FLAG,
    },
    "fsr": {
        "alpha": UNIT,
        "beta": st.sampled_from([0.0, 1.0, 8.0]),
        "rho": UNIT,
        "kappa": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "negate": FLAG,
    },
    "globalcom2": {
        "tau": st.sampled_from([0.1, 1.0, 10.0]),
        "alpha": UNIT,
        "score": st.sampled_from(["auto", "attention", "cosine"]),
        **OFFICIAL,
    },
    "gprune": {
        "similarity": st.sampled_from([0.05, 0.3, 0.9, 1.0]),
        "temperature": st.sampled_from([0.01, 0.3, 3.0]),
        "iterations": SMALL,
    },
    "hawk": {"first": st.integers(0, 2), "last": st.integers(0, 2)},
    "hiprune": {"alpha": UNIT, "shallow": st.one_of(TOWER, SHARE), **OFFICIAL},
    "hired": {"alpha": UNIT, "shallow": st.integers(0, 3), **OFFICIAL},
    "holitom": {"tau": UNIT, "beta": UNIT, "neighbours": SMALL, **OFFICIAL},
    "holov": {"crops": st.integers(1, 16), "alpha": UNIT, **OFFICIAL},
    "idpruner": {
        "importance": st.sampled_from(["cls", "flowcut", "norm", "uniform", "zoo"]),
        "lam": UNIT,
        "parallel": SMALL,
    },
    "langdc": {
        "length": st.sampled_from(["paper", "code"]),
        "state": st.sampled_from([None, "paper", "code"]),
        "join": FLAG,
    },
    "mmtok": {
        "alpha": UNIT,
        "text_temperature": st.sampled_from([0.02, 0.1, 1.0]),
        "vision_temperature": st.sampled_from([0.02, 0.2, 1.0]),
        "space": st.sampled_from(["encoder", "projected"]),
    },
    "norm": {"shortest": FLAG},
    "nuwa": {
        "tail": st.sampled_from([0.1, 0.25, 0.6, 1.0]),
        "layer": LAYER,
        "region": SMALL,
        "per_region": SMALL,
        "pillars": UNIT,
        "reach": st.sampled_from([0.01, 0.2, 1.0, 3.0]),
        "merge": st.sampled_from(["encoder", "projected"]),
        **OFFICIAL,
    },
    "pixelprune": {
        "threshold": st.sampled_from([0.0, 0.1, 0.5]),
        "metric": st.sampled_from(["max", "mae", "rmse"]),
        "std": st.sampled_from([0.27, 0.5]),
    },
    "pmod": {"target": st.sampled_from(["shiftedcos", "shiftedlinear"]), **OFFICIAL},
    "pool": {"layer": LAYER},
    "priortr": {
        "layer": LAYER,
        "queries": st.sampled_from(["question", "question_but_last", "last"]),
        "null": st.integers(0, 3),
    },
    "prumerge": PRUMERGE,
    "prumerge_plus": {**PRUMERGE, "outliers_share": UNIT},
    "prunesid": {"per_group": SMALL, "scale": st.sampled_from([4.0, 16.0, 32.0])},
    "prunevid": {
        "tail": SHARE,
        "layer": LAYER,
        "tau": UNIT,
        "scenes": SHARE,
        "neighbours": SMALL,
        "cluster": SHARE,
        **OFFICIAL,
    },
    "pyramiddrop": {"ratio": SHARE, "layers": LAYERS},
    "quecc": {"kernel": st.integers(1, 4), "no_text": FLAG},
    "random": {"seed": SEED, "layer": LAYER, "at": st.sampled_from(["vision", "input", "decoder"]), **OFFICIAL},
    "reroute": {"first": st.sampled_from(["pyramiddrop", "hawk"])},
    "restore": {"first": st.sampled_from(["divprune", "uniform", "fastv", "hawk", "pool", "pyramiddrop", "tome"])},
    "scope": {"alpha": UNIT, "space": st.sampled_from(["encoder", "projected"])},
    "sparsevlm": {
        "budget": st.sampled_from([192, 128, 64]),
        "counts": st.lists(st.integers(1, 16), min_size=1, max_size=3).map(lambda x: tuple(sorted(x)[::-1])),
        "rank_scale": SHARE,
        "layers": LAYERS,
        "recycle": FLAG,
        **OFFICIAL,
    },
    "todre": {**DIVERSE, **REMOVAL},
    "todre_diversity": DIVERSE,
    "todre_removal": REMOVAL,
    "tokencorr": {"adaptive": FLAG, "tau": UNIT, "limit": UNIT, "shallow": st.one_of(TOWER, SHARE)},
    "tokenflex": {},
    "tome": {
        "layer": LAYER,
        "at": st.sampled_from(["vision", "input", "decoder"]),
        "r": st.one_of(SMALL, SHARE),
        "metric": st.sampled_from(["features", "keys"]),
    },
    "transprune": {
        "layers": LAYERS,
        "ratios": st.lists(SHARE, min_size=1, max_size=3).map(lambda x: tuple(sorted(x)[::-1])),
        "since": st.integers(0, 2),
        "alpha": UNIT,
        "over": st.sampled_from(["sequence", "span"]),
        "absolute": FLAG,
    },
    "uniform": {"layer": LAYER},
    "vidcom2": OFFICIAL,
    "visionzip": {"contextual": st.one_of(st.integers(0, 6), UNIT), "merge": st.sampled_from(["encoder", "projected"])},
    "vispruner": {"important": UNIT, "step": SMALL},
    "vscan": {
        "ratio": st.integers(10, 40).map(lambda n: n / 10),
        "layer": LAYER,
        "shallow": TOWER,
        "window": SMALL,
        "global_ratio": UNIT,
        **OFFICIAL,
    },
    "vtw": {"layer": LAYER},
    "zero_tprune": {
        "at": st.sampled_from(["vision", "input"]),
        "layer": TOWER,
        "steps": st.integers(1, 3),
        "similar": UNIT,
        "votes": SMALL,
        "uniform": FLAG,
    },
    "zoo_prune": {
        "directions": st.sampled_from([4, 16]),
        "step": st.sampled_from([0.01, 0.1]),
        "rank": SMALL,
        "per_frame": FLAG,
        "seed": SEED,
    },
}
LEFT_OUT = {
    "cdpruner.text_encoder": "a CLIP to load",
    "deep_random.tokens": "the whole prompt's length, for its bookkeeping alone",
    "deep_random.first_params": "drawn with the methods themselves",
    "budget.first_params": "drawn with the methods themselves",
    "embedlens.classes": "a file",
    "explainer.weights": "a file, always the tiny one",
    "fitprune.schedule": "a file",
    "focusllava.weights": "a file, always an untrained network",
    "fsr.text_encoder": "a CLIP to load",
    "hawk.weights": "a file",
    "idpruner.scorer": "a file",
    "langdc.weights": "a file, always an untrained network",
    "pmod.weights": "a file, always untrained",
    "quecc.exact": "always off: its counts are its windows'",
    "quecc.question": "there is no tokenizer",
    "quecc.weights": "a file, always an untrained network",
    "reroute.first_params": "drawn with the methods themselves",
    "restore.first_params": "drawn with the methods themselves",
    "tokenflex.weights": "a file, always an untrained network",
}
# given always: without them the method can't run on tiny models, or takes long
NEEDED: dict[str, dict[str, Any]] = {
    "embedlens": {"sink": (5, 6, 7, 8, 9, 10), "dead": (20, 21, 22, 23, 24)},
    "explainer": {"weights": tiny_explainer()},
    "fastv": {"layer": 2},
    "langdc": {"weights": "untrained"},
    "focusllava": {"weights": "untrained"},
    "pmod": {"weights": "untrained"},
    "quecc": {"weights": "untrained", "kernel": 2, "exact": False, "question": "ids"},
    "tokenflex": {"weights": "untrained"},
    "vscan": {"window": 2, "ratio": 1.5},
    "zoo_prune": {"directions": 8},
}


@st.composite
def parameters(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Parameters of the method `name`, `keep` among them or not; not all of them go together."""
    given = dict(NEEDED.get(name, {}))
    # most runs touch few parameters: they must not refuse each other all the time
    chosen = draw(st.lists(st.sampled_from(sorted(TABLE[name])), max_size=3, unique=True)) if TABLE[name] else []
    given.update({field: draw(TABLE[name][field]) for field in chosen})
    if name == "sparsevlm" and ({"budget", "counts"} & given.keys()):
        return given
    if name == "vtw":
        return given if "layer" in given else {"keep": draw(SHARE)}
    return {"keep": draw(KEEP), **given}
