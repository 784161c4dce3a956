"""How questions are answered: options, plan, worker processes, and the results store.

In: options.
Out: rows of answers, one for each question and setting.
Uses: eval.cost, eval.files, eval.tasks, eval.tasks.metrics, eval.tasks.reading, eval.terminal, eval.vlm,
integrations.lmms_eval, methods, models.stock, pruners, vtc.
"""
