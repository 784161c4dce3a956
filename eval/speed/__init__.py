"""``vtc speed``: where the time of a prefill goes, pruned and not, and how near to its limit a method comes.

In: a model or its configuration, methods, keeps.
Out: figures with intervals, a table, a file that a later run is compared with.
Uses: eval.check.prompts, eval.check.tiny_model, eval.cost, eval.files, eval.load, eval.statistics, eval.sweep,
eval.tasks, eval.tasks.reading, eval.terminal, eval.vlm, models, models.layout, models.stock, models.tower, vtc.
"""
