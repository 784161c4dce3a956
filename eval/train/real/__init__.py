"""The adapter of ``bundled-real``: ``python -m vtc.eval.train.real --out DIR``.

In: scenes, the two packages with weights.
Out: a projector and matrices of low rank, their figures, their card.
Uses: eval.statistics, eval.train, eval.train.basics, eval.train.language, eval.train.scenes, eval.train.vision, real,
vtc.
"""
