"""The vision side: what each vision call was, encoder signals, and pruning inside the tower or a bare ViT.

In: pixels.
Out: features, encoder signals, and what is left of each item.
Uses: models.layout, models.selection, models.stock, pruners, pruners.primitives.
"""
