"""A wheel holds one top-level package, its type marker and its data, and stays small."""

import sys
import zipfile
from pathlib import Path

# from the repository root, where this runs
DATA = (
    "eval/bundled",
    "eval/tasks/reading/definitions",
    "eval/reports/html/templates",
    "eval/train/evidence",
    "serve/templates",
)
path = Path(sys.argv[1])
names = zipfile.ZipFile(path).namelist()
top = {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]}
if top != {"vtc"}:
    sys.exit(f"the wheel's top-level packages are {sorted(top)}, not only vtc")
for folder in DATA:
    if not Path(folder).is_dir():
        sys.exit(f"no such folder: {folder}")
data = [f"vtc/{file}" for folder in DATA for file in Path(folder).rglob("*") if file.is_file()]
data += [str(file) for file in Path("vtc/recipes").iterdir()]
for needed in ("vtc/py.typed", "vtc/pruners/dart.py", "vtc/eval/bundled/model/model.safetensors", *data):
    if needed not in names:
        sys.exit(f"the wheel lacks {needed}")
size = path.stat().st_size / 2**20
if size > 60:
    sys.exit(f"the wheel has {size:.0f} MiB")
print(f"wheel ok: {len(names)} files, {size:.1f} MiB")
