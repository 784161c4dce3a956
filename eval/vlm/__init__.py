"""The model under test: loaded, its pruning settings, its prompts, and its vision features computed once.

In: a model's name, questions.
Out: rows of model inputs, features by picture, and what the first decoder layers make of them.
Uses: eval.check.tiny_model, eval.tasks, eval.tasks.media, eval.terminal, models.language, models.layout,
models.stock, pruners, vtc.
"""
