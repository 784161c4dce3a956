"""The language model's side of a forward: hooks, columns that are left, masks, positions, cache.

In: embeddings and spans.
Out: hidden states, masks and a cache that hold what is left.
Uses: models.cache, models.layout, models.selection, models.stock, pruners.
"""
