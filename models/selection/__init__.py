"""A method at work: its choice among the candidates, checked, and the report of what went.

In: candidates as `VisualTokens`.
Out: the ids that stay.
Uses: models.layout, pruners.
"""
