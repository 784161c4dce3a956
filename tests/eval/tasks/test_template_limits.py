"""Templates of task definitions: what they may do, that it is bounded in time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from vtc.eval.tasks.reading.definition import READY, list_definitions, read_definition
from vtc.eval.tasks.reading.template_sandbox import LONGEST, WITHOUT, environment
from vtc.eval.tasks.reading.templates import Field

ROW = {
    "question": "What is it?",
    "options": ["a cat", "a dog"],
    "answer": 1,
    "x": "xy",
    "image": Image.new("RGB", (2, 2)),
}

HUGE = {
    "times": "{{ 'x' * 10 ** 10 }}",
    "times, other way": "{{ 10 ** 10 * 'x' }}",
    "list times": "{{ [1] * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "powers": "{{ (9 ** 999) ** 99999 }}",
    "squares": "{% set n = namespace(v=2) %}{% for i in range(60) %}{% set n.v = n.v * n.v %}{% endfor %}{{ n.v }}",
    "center": "{{ x.center(10 ** 10) }}",
    "ljust": "{{ x.ljust(10 ** 10) }}",
    "zfill": "{{ x.zfill(10 ** 10) }}",
    "filter center": "{{ x | center(10 ** 10) }}",
    "mapped center": "{{ options | map('center', 10 ** 10) | list }}",
    "indent": "{{ x | indent(10 ** 10, true) }}",
    "tojson": "{{ options | tojson(10 ** 10) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 10, 1) }}",
    "filter format": "{{ '%10000000000d' | format(1) }}",
    "precision": "{{ '%.1000000000f' % 1.5 }}",
    "str.format": "{{ '{:10000000000}'.format(1) }}",
    "str.format, width given": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "format_map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "replace": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "replace nothing": "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "filter replace": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "join": "{{ ('y' * 100000).join('x' * 100000) }}",
    "filter join": "{{ range(100000) | join('y' * 100000) }}",
    "doubled": "{% set n = namespace(v='x') %}{% for i in range(90) %}{% set n.v = n.v ~ n.v %}{% endfor %}{{ n.v }}",
    "added": "{% set n = namespace(v='x') %}{% for i in range(90) %}{% set n.v = n.v + n.v %}{% endfor %}{{ n.v }}",
    "lists": "{% set n = namespace(v=[1]) %}{% for i in range(90) %}{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v }}",
    "dicts": "{% set n = namespace(v=1) %}{% for i in range(90) %}{% set n.v = dict(a=n.v, b=n.v) %}{% endfor %}"
             "{{ n.v }}",
    "blocks": "{% set n = namespace(v='x') %}{% for i in range(90) %}{% set v %}{{ n.v }}{{ n.v }}{% endset %}"
              "{% set n.v = v %}{% endfor %}{{ n.v }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of text": "{% for a in range(99999) %}" + "some words " * 100 + "{% endfor %}",
    "output": "{% for a in range(9999) %}{{ 'word ' * 1000 }}{% endfor %}",
    "long field": "{{ 'x' * 1000001 }}",
    "macro calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
                                "{{ m(60) }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "range": "{{ range(10 ** 9) | list }}",
    "batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 10) | list }}",
    "round": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 10) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'little') }}",
    "translate": "{{ x.translate({120: 'y' * 100000}) }}",
    "lipsum": "{{ lipsum(10 ** 9) }}",
    "repr": "{{ (('a' * 100000, ) * 100000) | string }}",
    "sum": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, true, 'y' * 100000) }}",
}  # fmt: skip


def limited(text: str) -> str:
    """What a template gives, in a process that may have 400 MB more than it starts with and five seconds."""
    code = (
        "import resource, sys; from vtc.eval.tasks.reading.templates import Field\n"
        "row = {'x': 'xy', 'options': ['a', 'b']}; Field('prompt', '{{ x }}').value(row)\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 400 * 2 ** 20,) * 2)\n"
        "try: print(len(Field('prompt', sys.argv[1]).value(row)))\n"
        "except ValueError as e: print('refused', e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("name", HUGE)
def test_no_template_takes_gigabytes_or_minutes(name: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"^prompt: ") as refused:
        Field("prompt", HUGE[name]).value(ROW)
    assert time.process_time() - start < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", ["times", "doubled", "lists", "loops of text", "output", "macro calls itself twice"])
def test_it_is_refused_in_little_memory_too(name: str) -> None:
    assert limited(HUGE[name]).startswith("refused prompt: ")


REACHING = {
    "a picture": "{{ image.save('/tmp/vtc-template') }}",
    "its size": "{{ image.resize((100000, 100000)) }}",
    "a class": "{{ ''.__class__ }}",
    "through format": "{{ '{0.__class__}'.format(x) }}",
    "through attr": "{{ x | attr('__class__') }}",
    "an include": "{% include '/etc/passwd' %}",
    "a list's append": "{{ options.append(1) }}",
    "a function given": "{{ given() }}",
}


@pytest.mark.parametrize("name", REACHING)
def test_a_template_reaches_plain_values_only(name: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt: "):
        Field("prompt", REACHING[name]).value(ROW, given=lambda: 1)


FINE = [
    "{{ question }}\n{% for o in options %}{{ loop.index }}/{{ loop.length }} {{ 'AB'[loop.index0] }}. {{ o }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}",
    "{{ 'AB'[answer] }}{{ options.index('a dog') }}{{ x.upper() ~ '/' ~ answer }}",
    "{% for i, o in [(1, 'a'), (2, 'b')] %}{{ i }}{{ o }}{% else %}none{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}",
    "{% set n = namespace(s=0) %}{% for i in range(5) %}{% set n.s = n.s + i %}{% endfor %}{{ n.s }}",
    "{{ options | join(', ') }} {{ options | map('upper') | list }} {{ (answer | string) in ('1', '2') }}",
    "{{ '%05.2f|%s' % (1.5, 'a') }} {{ '{:>5}|{}'.format('a', 12345678) }} {{ '%d' | format(12345678) }}",
    "{{ {'a': 1, 'b': [1, 2]} }} {{ {'a': 1}.get('a') }} {{ options | tojson }} {{ row.options[1:] }}",
    "{{ 7 % 3 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 1.5 + 2 }} {{ 'a' + 'b' }} {{ 3.7 | round }}",
    "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{% for o in options if o != 'a cat' %}{{ o }}{{ loop.first }}{{ loop.cycle('p', 'q') }}{% endfor %}",
    "{% filter upper %}{{ x }}{% endfilter %}{% set y %}a{{ x }}{% endset %}{{ y }}",
    "{% with z = 1 %}{{ z }}{% endwith %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% macro m() %}{{ caller('in') }}{% endmacro %}"
    "{% call(u) m() %}{{ u }}{% endcall %}",
    "{{ none }} {{ true }} {{ 1 == 1.0 }}",
]  # fmt: skip


@pytest.mark.parametrize("text", FINE)
def test_the_text_is_jinja2s(text: str) -> None:
    stock = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    assert Field("prompt", text).value(ROW) == stock.from_string(text).render({**ROW, "row": ROW})


def test_a_long_field_is_fine_up_to_the_limit() -> None:
    assert len(Field("prompt", f"{{{{ 'x' * {LONGEST} }}}}").value({})) == LONGEST
    for length in (1, 1000, 100_000):
        assert Field("prompt", "{{ a | trim }}").value({"a": "y" * length}) == "y" * length


def test_all_other_filters_of_jinja2_are_there() -> None:
    assert set(ImmutableSandboxedEnvironment().filters) - set(environment().filters) == set(WITHOUT)


@pytest.mark.parametrize("name", list_definitions())
def test_the_ready_definitions_parse(name: str) -> None:
    assert read_definition(READY / f"{name}.yaml").prompt is not None


@pytest.mark.parametrize(
    "text", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if a %}" * 3000, "{{ a" + ".b" * 5000 + " }}"]
)
def test_a_template_nested_deep_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt: "):
        Field("prompt", text).value({"a": 1})
