#!/usr/bin/env bash
# GLM-4.1V in transformers 5.24.0 answers without having seen the video, and without an error, when generate() is told to
# read the prompt in chunks (prefill_chunk_size), even in one chunk: two different videos then give the same logits to the
# last bit. Beams or several sequences of a video end in an error of torch.cat. In both places generate() counts a
# modality's placeholders by its own id, but a video of GLM's is written with the pictures' id: it finds none, and hands on
# none of the video's features. Pictures are right in both.
#
# Seen on 2026-12-01 with torch 2.14.1 on a CPU, a model of random weights:
#   image, whole prompt: two of them differ True
#   image, chunks: two of them differ True, as the whole prompt True
#   image, 2 sequences: as the whole prompt True
#   video, whole prompt: two of them differ True
#   video, chunks: two of them differ False, as the whole prompt False
#   video, 2 sequences: ValueError: torch.cat(): expected a non-empty list of Tensors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

IMAGE, VIDEO, START, END = 60, 61, 62, 63
text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_heads": 2, "image_size": 56}
torch.manual_seed(0)
config = Glm4vConfig(text_config=text, vision_config=tower, image_token_id=IMAGE, video_token_id=VIDEO)
model = Glm4vForConditionalGeneration(config).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        weight.data.normal_(0, 0.2)


def logits(kind, seed, **how):
    frames = 2 if kind == "video" else 1
    # a processor writes each frame of a video with the placeholder of pictures, of type 2
    ids = torch.tensor([[1, 5] + [START, *[IMAGE] * 4, END, 7] * frames + [8]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given |= {"mm_token_type_ids": (ids == IMAGE).int() * (2 if kind == "video" else 1)}
    pixels = torch.randn(frames * 16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed))
    given |= {"pixel_values_videos" if kind == "video" else "pixel_values": pixels}
    given |= {f"{kind}_grid_thw": torch.tensor([[frames, 4, 4]])}
    made = model.generate(**given, **how, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    return made.logits[0]


def close(a, b):
    return torch.allclose(a, b.expand_as(a), atol=1e-4)


for kind in ("image", "video"):
    whole, other = logits(kind, 1), logits(kind, 2)
    print(f"{kind}, whole prompt: two of them differ {not torch.equal(whole, other)}")
    chunks, other = logits(kind, 1, prefill_chunk_size=64), logits(kind, 2, prefill_chunk_size=64)
    differ = not torch.equal(chunks, other)
    print(f"{kind}, chunks: two of them differ {differ}, as the whole prompt {close(chunks, whole)}")
    try:
        several = logits(kind, 1, do_sample=True, top_k=1, num_return_sequences=2)
        print(f"{kind}, 2 sequences: as the whole prompt {close(several, whole)}")
    except ValueError as error:
        print(f"{kind}, 2 sequences: ValueError: {error}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "image, whole prompt: two of them differ True
image, chunks: two of them differ True, as the whole prompt True
image, 2 sequences: as the whole prompt True
video, whole prompt: two of them differ True
video, chunks: two of them differ False, as the whole prompt False
video, 2 sequences: ValueError: torch.cat(): expected a non-empty list of Tensors" ]
