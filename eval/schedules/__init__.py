"""How many visual tokens a model can do without after each layer: ``vtc fitprune``.

In: a model and questions.
Out: a file of recipes, what is left after each decoder layer.
Uses: eval.files, eval.tasks, eval.terminal, eval.train.explainer, eval.vlm, methods, pruners, vtc.
"""
