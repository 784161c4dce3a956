"""The model under test: loaded, its pruning settings, its prompts, and its vision features computed once.

In: a model's name, questions.
Out: rows of model inputs, features by picture.
Uses: eval.check.tiny_model, eval.tasks, eval.tasks.media, eval.terminal, models.layout, pruners, vtc.
"""
