#!/usr/bin/env bash
# A float64 model with eager attention gives NaN for every token of a left-padded row in transformers 5.24.0, in the real
# columns too; float32, bfloat16 and float16 don't, and sdpa doesn't in float64 either. The mask hides with the lowest
# number of float64, and eager attention hands it to a softmax in float32, where that number is -inf: a padding column
# sees nothing, its softmax is 0/0, and from the next layer on its NaN reaches the others (0 * NaN). Whoever goes to
# float64 and eager to settle whether a difference is only rounding gets NaN from the stock model.
#
# Seen on 2026-11-28 with torch 2.14.1 on a CPU, Llama of two layers, two columns of padding and three tokens:
#   eager float32: NaN in the logits of real tokens: False
#   eager float64: NaN in the logits of real tokens: True
#   sdpa float64: NaN in the logits of real tokens: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
ids = torch.tensor([[0, 0, 1, 2, 3]])
mask = torch.tensor([[0, 0, 1, 1, 1]])
for attention, dtype in (("eager", torch.float32), ("eager", torch.float64), ("sdpa", torch.float64)):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation=attention).eval().to(dtype)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    lost = bool(logits[:, 2:].isnan().any())
    print(f"{attention} {str(dtype).removeprefix('torch.')}: NaN in the logits of real tokens: {lost}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py")
echo "$found"
[ "$found" = "eager float32: NaN in the logits of real tokens: False
eager float64: NaN in the logits of real tokens: True
sdpa float64: NaN in the logits of real tokens: False" ]
