#!/usr/bin/env bash
# Qwen2.5-VL in transformers 5.24.0 gives the text behind a long clip positions INSIDE the clip's time. Frames of a clip
# are `tokens_per_second * second_per_grid` positions apart, but what follows starts max(height, width) positions behind
# the clip's first one, as if the clip were a picture; in Qwen2.5-VL's definition (transformers 4.57.1, and vLLM) it
# starts behind the clip's last position. The token that generate() makes next does go behind all positions, so that the
# question and its answer are apart by the rest of the clip. Without an error; short clips and pictures are as before.
#
# Seen on 2026-11-29 with torch 2.14.1 on a CPU; grid of 2 x 2 tokens, 2 positions a frame:
#   1 frame:  5.24.0 clip 1..2, text 3..5, next 6;    4.57.1 clip 1..2, text 3..5, next 6
#   8 frames: 5.24.0 clip 1..15, text 3..5, next 16;  4.57.1 clip 1..15, text 16..18, next 19
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1"
cat >"$folder/look.py" <<'PY'
import inspect

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
text |= {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}}
tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
special = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
config = Qwen2_5_VLConfig(text_config=text, vision_config=tower | {"tokens_per_second": 2}, **special)
model = Qwen2_5_VLModel(config).eval()
for frames in (1, 8):
    ids = torch.tensor([[62] + [61] * 4 * frames + [63, 7, 8]])
    given = {"video_grid_thw": torch.tensor([[frames, 4, 4]]), "second_per_grid_ts": torch.tensor([1.0])}
    given |= {"attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        given["mm_token_type_ids"] = (ids == 61).int() * 2
    places, delta = model.get_rope_index(ids, **given)
    clip, after = places[:, 0, 1:-3], places[:, 0, -3:]
    print(f"{frames}: clip {clip.min()}..{clip.max()}, text {after.min()}..{after.max()}, next {ids.shape[1] + delta.item()}")
PY
found=""
for version in 5.24.0 4.57.1; do
    "$folder/venv/bin/pip" install -q "transformers==$version"
    found+="$version
$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
"
done
echo "$found"
[ "$found" = "5.24.0
1: clip 1..2, text 3..5, next 6
8: clip 1..15, text 3..5, next 16
4.57.1
1: clip 1..2, text 3..5, next 6
8: clip 1..15, text 16..18, next 19
" ]
