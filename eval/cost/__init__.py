"""What a prefill costs: FLOPs and KV bytes by part, and times measured in turns.

In: a model, its settings, a prompt.
Out: `Cost`, `PrefillTime`.
Uses: eval.vlm, models.layout, models.stock.
"""
