"""A wrapped text model under ``torch.compile``: layers planned ahead, stops as operators of its graph, static caches.

In: the decoder side's stops, layers and state.
Out: hooks of the layers that can be traced.
Uses: models.cache, models.language, models.stock, pruners.
"""
