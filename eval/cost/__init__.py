"""What a prefill costs: FLOPs and KV bytes by part, and times measured in turns.

In: a model, its settings, a prompt.
Out: `Cost`, `PrefillTime`; without weights `ModelWork`.
Uses: eval.vlm, models.layout, models.stock, models.tower.
"""
