"""How much each attention head matters: ``vtc hawk``.

In: a model and questions with their answers.
Out: a file of weights of heads.
Uses: eval.files, eval.inspect, eval.sweep, eval.tasks, eval.tasks.reading, eval.terminal, eval.vlm, methods,
models.layout, vtc.
"""
