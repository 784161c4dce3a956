"""How much information flows to each token of an encoder layer, as FlowCut measures it.

In: attention and similarity of values of the global token, and values, layer by layer.
Out: importance, what a layer's attention is concentrated on, and how many tokens a cut leaves.
"""

from .importance import Flow, encoder_flow, flow_score, flow_signals, kept_counts, parts_or_none, shares
from .on_host import best_columns, flows_on_host, kept_on_host

__all__ = [
    "Flow",
    "best_columns",
    "encoder_flow",
    "flow_score",
    "flow_signals",
    "flows_on_host",
    "kept_counts",
    "kept_on_host",
    "parts_or_none",
    "shares",
]
