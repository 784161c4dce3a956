"""What stands around ``generate``."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from vtc.models.language.thread_state import Local
from vtc.models.stock.call_arguments import Call, Signature, configured
from vtc.models.stock.thread_gate import Traffic
from vtc.models.stock.tripwire import check_features


def guarded_generate(local: Local, traffic: Traffic, generate: Any) -> Any:
    """Refuse what would silently prune wrongly, before any work is done, and note where the prompt ends."""

    @functools.wraps(generate)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        call = Call(Signature(generate), args, kwargs)
        config = call.get("generation") or configured(generate.__self__, "generation")
        chunk = call.get("prefill chunk") or configured(config, "prefill chunk")
        if chunk:
            raise NotImplementedError(
                f"prefill_chunk_size={chunk} would prune every chunk by itself. Pass prefill_chunk_size=None: a pruned "
                "prefill is short; or call vtc.restore(model) first."
            )
        ids = call.get("ids")
        # assisted decoding appends candidates to the first forward, which methods must not take for the question
        # a model that assists itself is called from inside, with pictures of the call around it encoded and not fed yet
        before = local.prompt, local.encoded, local.pending, local.records
        # a second turn may be given as its new tokens only, under a mask over everything
        widths = [x.shape[1] for x in (ids, call.get("mask")) if isinstance(x, Tensor) and x.dim() == 2]
        if not traffic.enter():  # unwrapped, or wrapped anew, while this waited
            return generate.__self__.generate(*args, **kwargs)
        local.prompt = max(widths) if isinstance(ids, Tensor) and widths else None
        local.encoded, local.pending, local.records = {}, False, {}
        try:
            found = generate(*args, **kwargs)
            if local.pictured is not local.encoded and any(call.get(m) is not None for m in ("image", "video")):
                check_features(generate.__self__)
            return found
        finally:
            local.prompt, local.encoded, local.pending, local.records = before
            local.end_steady()  # torch runs no hooks where it was interrupted
            traffic.leave()

    return guarded
