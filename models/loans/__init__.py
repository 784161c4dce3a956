"""Tokens that go round a decoder layer and are back behind it, and the gates on what the layer does to the others.

In: a pipeline's loans, the decoder side of a forward.
Out: hooks of the layers and of their MLP branches.
Uses: models.language, models.layout, models.selection, models.stock, pruners.
"""
