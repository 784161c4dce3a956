"""Training of methods with a network of their own, and of the model around it: ``vtc train METHOD``.

In: a model and questions with answers.
Out: the network, or a stock model folder with it.
Uses: eval.files, eval.sweep, eval.tasks, eval.tasks.media, eval.terminal, eval.train.explainer, eval.train.scenes,
eval.vlm, models, models.layout, pruners, pruners.trained, vtc.
"""
