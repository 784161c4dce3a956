"""Words and numbers of the tables and the page: rounded as people read them, and what to know first.

In: summaries.
Out: text.
Uses: eval.cost, eval.statistics.
"""
