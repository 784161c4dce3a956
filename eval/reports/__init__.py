"""A sweep for people and programs: tables, charts, CSV, JSON, published figures beside measured ones.

In: summaries.
Out: tables on the screen, files in the output folder.
Uses: eval.files, eval.reports.html, eval.reports.wording, eval.statistics, eval.sweep, eval.tasks, eval.tasks.metrics,
eval.terminal, eval.vlm, methods, models, pruners, vtc.
"""
