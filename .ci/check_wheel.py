"""A wheel holds one top-level package, its type marker and its data, and stays small."""

import sys
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
names = zipfile.ZipFile(path).namelist()
top = {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]}
if top != {"vtc"}:
    sys.exit(f"the wheel's top-level packages are {sorted(top)}, not only vtc")
for needed in (
    "vtc/py.typed",
    "vtc/pruners/dart.py",
    "vtc/models/adapter.py",
    "vtc/eval/bundled/model/model.safetensors",
    "vtc/eval/bundled/data/questions.parquet",
):
    if needed not in names:
        sys.exit(f"the wheel lacks {needed}")
size = path.stat().st_size / 2**20
if size > 60:
    sys.exit(f"the wheel has {size:.0f} MiB")
print(f"wheel ok: {len(names)} files, {size:.1f} MiB")
