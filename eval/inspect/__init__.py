"""Looking inside: kept tokens, heat maps, relevance, token classes, overlap, information horizon.

In: a model and a picture.
Out: pictures and figures.
Uses: eval.files, eval.statistics, eval.sweep, eval.tasks, eval.tasks.media, eval.tasks.reading, eval.terminal,
eval.vlm, methods, models.language, models.layout, models.selection, models.stock, pruners, pruners.primitives, vtc.
"""
