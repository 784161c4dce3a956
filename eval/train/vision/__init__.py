"""The first stage: the vision tower, with heads that are thrown away afterwards.

In: scenes.
Out: a tower.
Uses: eval.train.basics, eval.train.scenes.
"""
