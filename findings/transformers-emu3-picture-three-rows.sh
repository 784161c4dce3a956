#!/usr/bin/env bash
# Emu3ImageProcessor of transformers 5.24.0 takes a PIL picture of three rows of pixels (a rule, a strip of a page) for one
# whose channels come first: a picture 100 wide and 3 high becomes pixel_values 2960 high and 96 wide, a mixture of its
# columns and colours. A PIL picture says what it is; the processor turns it into an array first and asks the array's
# shape, where (3, 100, 3) can be read both ways. Only a warning about ambiguous channels tells. The same picture 4 high
# is wide, and of three columns is right. Processors of other vision-language models read PIL pictures by another way.
#
# Seen on 2026-12-01 with numpy 2.4.6 and pillow 13.0.0, without torch:
#   100 wide, 3 high: 96 wide, 2960 high
#   100 wide, 4 high: 2560 wide, 104 high
#   3 wide, 100 high: 96 wide, 2960 high
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "numpy==2.4.6" "pillow==13.0.0"
cat >"$folder/look.py" <<'PY'
from PIL import Image
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

processor = Emu3ImageProcessor()
for size in ((100, 3), (100, 4), (3, 100)):
    made = processor([Image.new("RGB", size)], return_tensors="np")["pixel_values"]
    height, width = made.shape[-2:]
    print(f"{size[0]} wide, {size[1]} high: {width} wide, {height} high")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "100 wide, 3 high: 96 wide, 2960 high
100 wide, 4 high: 2560 wide, 104 high
3 wide, 100 high: 96 wide, 2960 high" ]
