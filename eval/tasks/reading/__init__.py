"""Evaluation sets read from folders, definitions (YAML) and the hub, row by row.

In: folders, files, names of data sets.
Out: a `TaskSet`; bad rows are named.
Uses: eval.files, eval.tasks, eval.tasks.media, eval.tasks.metrics, pruners.
"""
