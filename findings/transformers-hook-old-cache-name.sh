#!/usr/bin/env bash
# transformers 5.24.0 renamed the argument `past_key_values` of its models to `cache`; calls under the old name still
# work. A forward pre-hook that puts a cache under the old name does not: the caller above it already passes `cache=None`,
# and of the two the new one counts. The model then fills a cache of its own, and the hook's stays empty; all that is
# said is a FutureWarning. On 5.23.0 the same hook works. An output answers to both names, but its keys hold one, so that
# `dict(output)` and `**output` know only `cache`.
#
# Seen on 2026-11-28 with torch 2.14.1 on a CPU:
#   5.23.0: tokens in the hook's cache 4, the model returns it: True; keys of the output: ['logits', 'past_key_values']
#   5.24.0: tokens in the hook's cache 0, the model returns it: False; keys of the output: ['logits', 'cache']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "transformers==5.24.0"
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/older" "transformers==5.23.0"
cat >"$folder/look.py" <<'PY'
import warnings

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
mine = DynamicCache(config=model.config)
model.model.register_forward_pre_hook(
    lambda module, args, kwargs: (args, {**kwargs, "past_key_values": mine}), with_kwargs=True
)
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    out = model(torch.tensor([[1, 2, 3, 4]]), use_cache=True)
    print(
        f"{transformers.__version__}: tokens in the hook's cache {mine.get_seq_length()}, the model returns it: "
        f"{out.past_key_values is mine}; keys of the output: {list(out)}"
    )
PY
newer=$("$folder/venv/bin/python" "$folder/look.py")
older=$(PYTHONPATH="$folder/older" "$folder/venv/bin/python" "$folder/look.py")
printf '%s\n%s\n' "$older" "$newer"
[ "$older" = "5.23.0: tokens in the hook's cache 4, the model returns it: True; keys of the output: ['logits', 'past_key_values']" ]
[ "$newer" = "5.24.0: tokens in the hook's cache 0, the model returns it: False; keys of the output: ['logits', 'cache']" ]
