"""What ``vtc check`` finds on every model type, and the page of it: ``python benchmarks/families_page.py [TYPE ...]``.

Each type is checked with its default configuration on the installed transformers, and tried with every method; what
was found goes into docs/families.json as soon as it is there. What is there for this version is not checked again, so
that a killed run goes on; types that are named are. ``--methods`` only tries methods again, all or those of the
patterns behind it, as after one more was registered; ``--page`` only writes docs/families-checked.md.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version

from vtc.eval.check.check_job import CheckOptions, run_check
from vtc.eval.check.methods_on_model import REFUSED, RUNS, SUBSTITUTE, methods_on
from vtc.eval.check.prompts.build_prompts import KINDS
from vtc.eval.check.results import EXACT, FINE
from vtc.eval.files.atomic import write_atomic

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORD, PAGE = DOCS / "families.json", DOCS / "families-checked.md"
ATTENTIONS, TOKENS = ("eager", "sdpa", "flex"), 6
METHODS = ("methods", "no methods")
MARKS = {RUNS: "+", SUBSTITUTE: "s", REFUSED: "-"}
HEAD = """# Families: what was run

Written by `python benchmarks/families_page.py` from what `vtc check` found on a small random model of each type's
default configuration ({tokens} generated tokens; attention {attentions}), and from wrapping it with every method at
full size without weights. `vtc check MODEL` and `vtc pruners --model MODEL` show the same of your model.

## Exact

The version's column has the day of the run. What was checked, where the model takes it:
{shapes}.
What the last column does not name was exact at all these stages. Flex attention, where transformers has it for the
model, runs on fewer rows (only its masks are made otherwise), and on the newest version only.

| model type | row | exact at | attention | {versions} | not run or refused |
|---|---|---|---|{lines}---|
"""


def checked(kind: str) -> tuple[str, dict[str, Any]]:
    """What ``vtc check`` and ``vtc pruners --model`` say of a type."""
    torch.set_num_threads(1)
    try:
        result = run_check(CheckOptions(kind, ATTENTIONS, tokens=TOKENS)).as_json()
    except (ValueError, OSError) as error:
        return kind, {"error": str(error)}
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        **{name: result[name] for name in ("family", "about", "versions", "exit_code", "seconds")},
        "reasons": (reasons := list(dict.fromkeys(o["why"] for o in result["outcomes"]))),
        "outcomes": [
            [o["contract"], o["stage"], o["attention"], o["status"], reasons.index(o["why"])]
            for o in result["outcomes"]
        ],
    }
    return kind, {**found, **tried(kind)[1]}


def tried(kind: str, patterns: Sequence[str] = ("*",)) -> tuple[str, dict[str, Any]]:
    """What ``vtc pruners --model`` says of a type and the methods of `patterns`."""
    torch.set_num_threads(1)
    try:
        found = [one for pattern in patterns for one in methods_on(kind, pattern)]
        return kind, {"methods": {one.name: [one.status, one.why] for one in found}}
    except (ValueError, NotImplementedError) as error:
        return kind, {"no methods": str(error)}


def check_all(named: list[str]) -> None:
    """Check what is not there yet, or what is `named`, and write each as soon as it is done."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    version = transformers.__version__
    known = set(transformers.CONFIG_MAPPING)
    todo = named or [k for k in KINDS if k in known and version not in record.get(k, {})]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=6) as pool:
        for i, (kind, found) in enumerate(pool.imap_unordered(checked, todo), 1):
            record.setdefault(kind, {})[version] = found
            write_record(record)
            print(f"{i}/{len(todo)} {kind}: {found.get('error') or found['exit_code']}", flush=True)


def try_methods_again(patterns: Sequence[str]) -> None:
    """Try methods on every type that was checked on the installed version, and write all at the end.

    Without `patterns` all of them, and what is no method any more is forgotten.
    """
    record = json.loads(RECORD.read_text())
    here = [kind for kind, found in record.items() if "exit_code" in found.get(transformers.__version__, {})]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=6) as pool:
        try_one = functools.partial(tried, patterns=patterns or ("*",))
        for i, (kind, found) in enumerate(pool.imap_unordered(try_one, here), 1):
            of_type = record[kind][transformers.__version__]
            if patterns and "methods" in found:
                found = {"methods": of_type.get("methods", {}) | found["methods"]}
            record[kind][transformers.__version__] = {k: v for k, v in of_type.items() if k not in METHODS} | found
            print(f"{i}/{len(here)} {kind}", flush=True)
    write_record(record)


def write_record(record: dict[str, Any]) -> None:
    """A line for each type and version, in their order."""
    write_atomic(RECORD, json.dumps(record, indent=None, sort_keys=True).replace('}, "', '},\n"') + "\n")


def newest(record: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each type what was found on the newest version that it was checked on."""
    return {kind: by_version[max(by_version, key=Version)] for kind, by_version in record.items()}


def row(kind: str, found: dict[str, Any], by_version: dict[str, Any], versions: list[str]) -> str:
    """A line of the first table: what was `found` on the newest version, and when it was fine on each."""
    outcomes = found["outcomes"]
    exact = [o for o in outcomes if o[3] == EXACT]
    stages, attentions = ([*dict.fromkeys(o[i] for o in exact)] for i in (1, 2))
    odd: dict[str, list[str]] = {}
    for contract, stage, attention, status, _ in outcomes:
        if status != EXACT and stage in stages and attention in attentions:
            odd.setdefault(f"{contract} ({status})", []).append(f"{stage} {attention}")
    words = "; ".join(f"{name}: {', '.join(where)}" if len(where) < 3 else name for name, where in odd.items())
    days = []
    for version in versions:
        there = by_version.get(version)
        broken = there and (there.get("error") or there["exit_code"])
        days.append("-" if not there else f"exit {broken}" if broken else there["date"])
    family = "-" if found["family"] == "unknown" else found["family"]
    cells = [f"`{kind}`", family, ", ".join(stages), ", ".join(attentions), *days, words or "-"]
    return f"| {' | '.join(cells)} |"


def matrix(found: dict[str, dict[str, Any]]) -> str:
    """Methods down, groups of types across: types on which the same methods run stand together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    names = sorted({name for one in found.values() for name in one.get("methods", {})})
    for kind, one in found.items():
        if "methods" in one:
            groups.setdefault(tuple(MARKS[one["methods"][n][0]] for n in names), []).append(kind)
    ordered = sorted(groups.items(), key=lambda g: -len(g[1]))
    lines = [
        "",
        "## Methods",
        "",
        "`+` runs, `s` runs with a substitute for the tower's class token, `-` is refused (what "
        "has to be trained: until it is).",
        "",
    ]
    lines += [
        f"- {i}: {', '.join(f'`{k}`' for k in kinds)}; {sum(m != '-' for m in marks)} of {len(names)} run"
        for i, (marks, kinds) in enumerate(ordered, 1)
    ]
    lines += ["", f"| method | {' | '.join(str(i) for i in range(1, len(ordered) + 1))} |"]
    lines += ["|---|" + "---|" * len(ordered)]
    lines += [f"| {name} | {' | '.join(marks[j] for marks, _ in ordered)} |" for j, name in enumerate(names)]
    missing = [f"`{k}` ({one['no methods']})" for k, one in found.items() if "no methods" in one]
    lines += ["", f"Not tried: {'; '.join(missing)}."] if missing else []
    return "\n".join(lines)


def write_page() -> None:
    """The page, from what is recorded."""
    record = json.loads(RECORD.read_text())
    exact = {kind: one for kind, one in newest(record).items() if one.get("exit_code") == FINE}
    versions = sorted({v for by_version in record.values() for v in by_version}, key=Version, reverse=True)
    shapes = list(dict.fromkeys(o[0] for one in exact.values() for o in one["outcomes"]))
    head = HEAD.format(
        tokens=TOKENS,
        attentions=", ".join(ATTENTIONS),
        shapes="; ".join(shapes),
        versions=" | ".join(versions),
        lines="---|" * len(versions),
    )
    rows = [row(kind, exact[kind], record[kind], versions) for kind in KINDS if kind in exact]
    write_atomic(PAGE, head + "\n".join(rows) + "\n" + matrix(exact) + "\n")


def main() -> None:
    """Check, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="check these again (default: what is not there yet)")
    parser.add_argument("--methods", nargs="*", metavar="PATTERN", help="only try methods again (default: all)")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    if options.methods is not None:
        try_methods_again(options.methods)
    elif not options.page:
        check_all(options.types)
    write_page()


if __name__ == "__main__":
    main()
