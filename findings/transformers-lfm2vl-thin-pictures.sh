#!/usr/bin/env bash
# Lfm2VlImageProcessor of transformers 5.24.0 gives a long, thin picture (a strip of a page, a banner, a timeline) more
# tokens than max_image_tokens allows. A picture's sides are scaled so that its area fits, but neither below one token;
# the other side is not shortened for that. 20,000 x 16 pixels are 565 tokens where 256 are the most, and the padded
# pixel_values grow from 1,024 patches to 2,260. Whoever sets memory or a prompt's length by that limit is wrong, and a
# batch of such a picture beside an ordinary one can't be stacked (a RuntimeError about sizes).
#
# Seen on 2026-12-01 with torch 2.14.1, torchvision 0.29.1:
#   limit 256
#   512 x 512: 256 tokens, 1024 patches with padding
#   4000 x 16: 125 tokens, 1024 patches with padding
#   20000 x 16: 565 tokens, 2260 patches with padding
#   beside an ordinary picture: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0" pillow
cat >"$folder/look.py" <<'PY'
from PIL import Image
from transformers import Lfm2VlImageProcessor

processor = Lfm2VlImageProcessor()
print("limit", processor.max_image_tokens)


def shown(*sizes):
    pictures = [[Image.new("RGB", size)] for size in sizes]
    return processor(pictures, do_image_splitting=False, return_tensors="pt")


for size in ((512, 512), (4000, 16), (20000, 16)):
    made = shown(size)
    [[rows, cols]] = made["spatial_shapes"].tolist()
    tokens = rows * cols // processor.downsample_factor**2
    print(f"{size[0]} x {size[1]}: {tokens} tokens, {made['pixel_values'].shape[1]} patches with padding")
try:
    shown((512, 512), (20000, 16))
    print("beside an ordinary picture: no error")
except RuntimeError as error:
    print("beside an ordinary picture:", type(error).__name__)
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "limit 256
512 x 512: 256 tokens, 1024 patches with padding
4000 x 16: 125 tokens, 1024 patches with padding
20000 x 16: 565 tokens, 2260 patches with padding
beside an ordinary picture: RuntimeError" ]
