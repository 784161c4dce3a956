"""Where visual tokens sit: a model's parts and family, the spans of a prompt, the grids behind them.

In: a model, and what it is fed.
Out: `Parts`, `Family`, `Batch` of spans, `Layout` of each.
Uses: models.stock, pruners.
"""
