"""Prompts of every shape for a small model of any family.

In: its configuration.
Out: token ids, pixels, masks.
Uses: eval.check.tiny_model, models.stock.
"""
