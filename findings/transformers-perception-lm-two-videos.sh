#!/usr/bin/env bash
# Perception LM in transformers 5.24.0 reads the wrong videos, without an error, as soon as generate() makes several
# sequences (num_return_sequences, or beams) of a sample with two videos. generate() encodes pictures and videos first
# and repeats what came out sample by sample, but this model has no get_video_features, so its pixel_values_videos are
# repeated row by row: videos A, B of one sample become A, A, B, B where its two sequences need A, B, A, B. Both
# sequences then differ from the one that is made alone; with one video they don't.
#
# Seen on 2026-11-29 with torch 2.14.1 and timm 1.0.31 on a CPU, a model of random weights, greedy choice:
#   1 video: the sequences are those of one alone: [True, True]
#   2 videos: the sequences are those of one alone: [False, False]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0" "timm==1.0.31"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration

torch.manual_seed(0)
text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
size = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": (28, 28), "patch_size": 7, "ref_feat_shape": (4, 4)}
tower = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "do_pooling": False}
tower["model_args"] = {**size, "global_pool": ""}
config = PerceptionLMConfig(text_config=text, vision_config=tower, image_token_id=60, video_token_id=61)
model = PerceptionLMForConditionalGeneration(config).eval()
for weight in model.parameters():
    weight.data.normal_(0, 0.3)
for count in (1, 2):
    ids = torch.tensor([[1, 5] + ([61] * 16 + [6]) * count + [7, 8]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 1}
    given |= {"pixel_values_videos": torch.randn(count, 1, 3, 28, 28)}
    given |= {"output_logits": True, "return_dict_in_generate": True}
    alone = model.generate(**given, do_sample=False).logits[0]
    both = model.generate(**given, do_sample=True, top_k=1, num_return_sequences=2).logits[0]
    same = [torch.allclose(one, alone[0], atol=1e-4) for one in both]
    print(f"{count} video{'s' * (count > 1)}: the sequences are those of one alone: {same}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "1 video: the sequences are those of one alone: [True, True]
2 videos: the sequences are those of one alone: [False, False]" ]
