"""What answers tell: intervals, paired tests, verdicts, ranks.

In: rows of answers.
Out: a `CellSummary` for each line of the table.
Uses: eval.cost, eval.sweep, eval.tasks, eval.tasks.metrics, eval.vlm, pruners, vtc.
"""
