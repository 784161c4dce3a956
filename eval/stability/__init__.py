"""``vtc stability``: how much of a method's choice is rounding.

In: methods.
Out: the overlap of choices, as a table.
Uses: eval.terminal, eval.vlm, methods, models.selection, pruners, vtc.
"""
