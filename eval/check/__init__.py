"""``vtc check``: does vtc work with this model and the transformers that is installed?

A tiny random model of the very configuration (``tiny_model``) gets prompts of every shape (``prompts``), and what
pruning gives is compared with the untouched model under masks (``masked_reference``, ``contracts``).

In: a model's name. Out: a table of exact, refused, WRONG.
Uses: eval.check.prompts, eval.check.tiny_model, eval.terminal, eval.vlm, methods, models, models.layout, models.stock,
models.tower, pruners, vtc.
"""
