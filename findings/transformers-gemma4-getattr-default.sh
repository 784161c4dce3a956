#!/usr/bin/env bash
# transformers 5.24: on configurations whose layers differ, as those of Gemma 4, an attribute that varies by layer raises
# an error that is no AttributeError. So the idiom of every tool that reads configurations, getattr(config, "head_dim",
# hidden_size // num_attention_heads), gives no default but an exception, and hasattr raises as well, while to_dict()
# has a value. With a uniform LlamaConfig both work; dots3_note does the same for num_attention_heads.
#
# Seen on 2026-11-30 with transformers 5.24.0 (default configurations, no torch, no weights):
#   llama head_dim: getattr with default gives 128, hasattr True
#   gemma4_text head_dim: getattr with default raises AmbiguousGlobalPerLayerAttributeError, hasattr raises
#   dots3_note_text num_attention_heads: getattr with default raises the same, hasattr raises
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
from transformers import CONFIG_MAPPING


def said(call):
    try:
        return str(call())
    except AttributeError:
        return "AttributeError"
    except Exception as error:
        return type(error).__name__


for kind, name in (("llama", "head_dim"), ("gemma4_text", "head_dim"), ("dots3_note_text", "num_attention_heads")):
    config = CONFIG_MAPPING[kind]()
    in_dict = name in config.to_dict()
    print(kind, said(lambda: getattr(config, name, "default")), said(lambda: hasattr(config, name)), in_dict)
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "llama 128 True True
gemma4_text AmbiguousGlobalPerLayerAttributeError AmbiguousGlobalPerLayerAttributeError True
dots3_note_text AmbiguousGlobalPerLayerAttributeError AmbiguousGlobalPerLayerAttributeError True" ]
