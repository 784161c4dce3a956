#!/usr/bin/env bash
# Mistral 3 in transformers 5.24.0 can't read a picture that is one token: alone in its batch, a picture of 28 x 28
# pixels (patches of 14, a merge of 2) ends in an error about split sizes. The projector gives [1, D] for it, the model
# takes that leading dimension for the batch's, squeezes it away, and then splits the width instead of the tokens. A
# picture of two tokens goes through.
#
# Seen on 2026-11-29 with torch 2.14.1 on a CPU, a model of random weights of width 32:
#   28 x 56: [(2, 32)]
#   28 x 28: RuntimeError: split_with_sizes expects split_sizes to sum exactly to 32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

torch.manual_seed(0)
text = {"model_type": "mistral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
tower = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
tower |= {"num_attention_heads": 2, "head_dim": 16, "image_size": 280, "patch_size": 14}
model = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=tower)).eval()
for height, width in ((28, 56), (28, 28)):
    picture = torch.randn(1, 3, height, width)
    try:
        features = model.model.get_image_features(picture, torch.tensor([[height, width]])).pooler_output
        found = [tuple(one.shape) for one in features]
    except RuntimeError as error:
        found = f"RuntimeError: {str(error).split('(')[0].strip()}"
    print(f"{height} x {width}: {found}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "28 x 56: [(2, 32)]
28 x 28: RuntimeError: split_with_sizes expects split_sizes to sum exactly to 32" ]
