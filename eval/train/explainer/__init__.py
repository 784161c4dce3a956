"""Training of the network behind the ``explainer`` method: ``vtc train explainer``.

In: a model and its scenes.
Out: the network.
Uses: eval.files, eval.inspect, eval.sweep, eval.tasks, eval.tasks.metrics, eval.tasks.reading, eval.terminal,
eval.train.basics, eval.train.scenes, eval.vlm, methods, pruners, pruners.primitives, vtc.
"""
