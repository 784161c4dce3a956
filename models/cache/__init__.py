"""The KV cache of a pruned model: layers that know which tokens they hold, and may differ in length.

In: a transformers cache, slots of new columns.
Out: the same cache with its layers replaced by twins with slots.
Uses: models.stock.
"""
