#!/usr/bin/env bash
# An image processor of transformers 5.24.0 sees another picture when it is given a file's path (or URL) than when it is
# given the same file opened. Black ink on a transparent ground (a formula, a diagram, a logo) is on white when opened, for
# the processors put pictures on white; by its path it is black all over, because load_image drops alpha before that. And
# a photograph whose EXIF tag says that it is to be turned is turned by its path and lies on its side when opened, so that
# its rows of patches are columns. So an evaluation on opened pictures says little about prompts that carry URLs.
#
# Seen on 2026-12-01 with numpy 2.4.6 and pillow 13.0.0, without torch (with torch 2.14.1 and torchvision 0.29.1 as well):
#   ink.png: opened 10 x 20 patches, values 0..1; by path 10 x 20 patches, values 0..0
#   photo.jpg: opened 10 x 20 patches, values 1..1; by path 20 x 10 patches, values 1..1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "numpy==2.4.6" "pillow==13.0.0"
cat >"$folder/look.py" <<'PY'
import sys

from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

folder = sys.argv[1]
ink = Image.new("RGBA", (280, 140), (0, 0, 0, 0))
ImageDraw.Draw(ink).line((0, 0, 280, 140), fill=(0, 0, 0, 255), width=20)
ink.save(f"{folder}/ink.png")
photo = Image.new("RGB", (280, 140), (255, 255, 255))
exif = photo.getexif()
exif[0x0112] = 6  # orientation: to be turned by 90 degrees
photo.save(f"{folder}/photo.jpg", exif=exif)
processor = Qwen2VLImageProcessorPil(do_normalize=False)


def seen(picture):
    made = processor([picture], return_tensors="np")
    [[_, rows, cols]] = made["image_grid_thw"]
    values = made["pixel_values"]
    return f"{rows} x {cols} patches, values {values.min():.0f}..{values.max():.0f}"


for name in ("ink.png", "photo.jpg"):
    path = f"{folder}/{name}"
    print(f"{name}: opened {seen(Image.open(path))}; by path {seen(path)}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
echo "$found"
[ "$found" = "ink.png: opened 10 x 20 patches, values 0..1; by path 10 x 20 patches, values 0..0
photo.jpg: opened 10 x 20 patches, values 1..1; by path 20 x 10 patches, values 1..1" ]
