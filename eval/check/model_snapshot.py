"""Everything about a model that wrapping could change, to compare before with after."""

from __future__ import annotations

from typing import Any

from torch import Tensor

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def identity(value: Any) -> Any:
    """Which object it is; of tensors only that it is one: Qwen stores its ``rope_deltas`` anew each time."""
    return "tensor" if isinstance(value, Tensor) else id(value)


def anatomy(model: Any) -> dict[str, Any]:
    """Classes, hooks, instance attributes and configs of every module, and the state dict's keys."""
    out: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = {h: list(getattr(module, h, {})) for h in HOOKS}
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None)
        attributes = {k: identity(v) for k, v in vars(module).items() if k not in HOOKS}
        out[name] = (type(module), hooks, id(config), implementation, attributes)
    out["state"] = sorted(model.state_dict())
    out["generation_config"] = model.generation_config.to_dict()
    return out
