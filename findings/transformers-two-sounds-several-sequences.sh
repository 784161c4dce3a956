#!/usr/bin/env bash
# transformers 5.24.0 gives samples the wrong sound, without an error, as soon as generate() makes several sequences
# (num_return_sequences, or beams) of a sample with two clips. Pictures and videos are encoded first and repeated sample
# by sample, but sound is not: the rows of input_features are repeated one by one, so clips A, B of one sample become
# A, A, B, B where its two sequences need A, B, A, B. Both sequences then differ from the one that is made alone; with
# one clip they don't. Gemma 4 unified here; so do Gemma 4, Gemma 3n, Qwen2.5-Omni, Qwen3-Omni, Muse Spark and
# Nemotron-H Omni (Apertus 1.5 repeats clips by itself, and rightly).
#
# Seen on 2026-11-29 with torch 2.14.1 on a CPU, a model of random weights, greedy choice:
#   1 clip: the sequences are those of one alone: [True, True]
#   2 clips: the sequences are those of one alone: [False, False]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

torch.manual_seed(0)
text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]}
text |= {"per_layer_config": None}
tower = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 32}
names = {"image_token_id": 60, "video_token_id": 61, "audio_token_id": 62, "boi_token_id": 57, "eoi_token_id": 58}
config = Gemma4UnifiedConfig(text_config=text, vision_config=tower, audio_config={"audio_embed_dim": 8}, **names)
model = Gemma4UnifiedForConditionalGeneration(config).eval()
for weight in model.parameters():
    weight.data.normal_(0, 0.3)
for count in (1, 2):
    ids = torch.tensor([[1, 5] + ([62] * 6 + [6]) * count + [7, 8]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 1}
    given |= {"input_features": torch.randn(count, 6, 8), "input_features_mask": torch.ones(count, 6, dtype=torch.bool)}
    given |= {"output_logits": True, "return_dict_in_generate": True}
    alone = model.generate(**given, do_sample=False).logits[0]
    both = model.generate(**given, do_sample=True, top_k=1, num_return_sequences=2).logits[0]
    same = [torch.allclose(one, alone[0], atol=1e-4) for one in both]
    print(f"{count} clip{'s' * (count > 1)}: the sequences are those of one alone: {same}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "1 clip: the sequences are those of one alone: [True, True]
2 clips: the sequences are those of one alone: [False, False]" ]
