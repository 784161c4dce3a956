"""A wrapped text model under ``torch.compile``: layers planned ahead, and stops as operators of its graph.

In: the decoder side's stops, layers and state.
Out: hooks of the layers that can be traced.
Uses: models.cache, models.language, models.stock, pruners.
"""
