"""The page at ``/``: one file without anything from elsewhere, under a policy that lets nothing else run."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from vtc.version import __version__


@functools.cache
def page() -> tuple[str, str]:
    """The page and its Content-Security-Policy."""
    own = files("vtc.serve") / "templates"
    report = files("vtc.eval") / "reports" / "html" / "templates" / "style.css"  # the same look
    style = report.read_text(encoding="utf-8") + (own / "page.css").read_text(encoding="utf-8")
    script = (own / "page.js").read_text(encoding="utf-8")
    text = (own / "page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return template.render(style=style, script=script, version=__version__), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
