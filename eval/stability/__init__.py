"""``vtc stability``: how much of a method's choice is rounding.

In: methods; a model, if choices inside one are asked for.
Out: the overlap of choices, as a table.
Uses: eval.tasks.reading, eval.terminal, eval.vlm, methods, models.selection, pruners, vtc.
"""
