"""Training of the bundled model from scratch: ``python -m vtc.eval.train --out DIR``.

In: scenes.
Out: the bundled model, its evaluation set, its card.
Uses: eval.train.basics, eval.train.language, eval.train.scenes, eval.train.vision.
"""
