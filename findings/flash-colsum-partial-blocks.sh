#!/usr/bin/env bash
# flash-colsum 0.1.0 (mean attention towards each key, in Triton) is silently wrong wherever a block is not full. Its
# batched kernel takes 64 keys and 64 channels at a time. Keys behind the end are loaded as zeros and not masked out of
# the softmax's sum, so that lengths that are no multiple of 64 come out too small; channels from the 65th on are not
# read at all. Vision towers have such shapes: CLIP-L/336 577 tokens, SigLIP-so400m heads of 72, Qwen2.5-VL heads of 80.
# A mean over queries that sum to 1 must itself sum to 1: that is not so where keys are missing.
#
# Seen on 2026-11-29 with torch 2.14.1, triton 3.8.0, numpy 2.4.6, the kernel run by Triton's own interpreter on a CPU
# (the wheel's entry point takes CUDA tensors only); largest error over the largest value, against attention in torch:
#   128 keys, heads of 64: right    128 keys, heads of 80: wrong, sum 1.00
#   100 keys, heads of 64: wrong, sum below 0.95
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "triton==3.8.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install -q --no-deps "flash-colsum==0.1.0"
cat >"$folder/look.py" <<'PY'
import torch
from flash_colsum.kernel_noncausal_batched import _flash_colsum_batched

torch.manual_seed(0)
for keys, channels in ((128, 64), (128, 80), (100, 64)):
    q, k = torch.randn(2, 2, keys, channels), torch.randn(2, 2, keys, channels)
    found = _flash_colsum_batched(q, k, channels**-0.5).float()
    right = ((q @ k.transpose(2, 3)) * channels**-0.5).softmax(-1).mean((1, 2))
    error = ((found - right).abs().max() / right.max()).item()
    whole = found.sum(1).mean().item()
    print(keys, channels, "right" if error < 2e-3 else "wrong", f"sum {whole:.2f}" if whole > 0.95 else "sum below 0.95")
PY
found=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "128 64 right sum 1.00
128 80 wrong sum 1.00
100 64 wrong sum below 0.95" ]
