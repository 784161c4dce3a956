"""The second stage: the language model and the projector, many questions packed behind one picture.

In: scenes, a tower.
Out: a LLaVA.
Uses: eval.train.basics, eval.train.scenes, eval.train.vision.
"""
