"""``vtc load-test``: what pruning is worth on a server, in requests per second and times, beside what it could be.

In: servers with a setting each, pictures, concurrencies.
Out: a line per request, a table with paired ratios, words where pruning does not pay.
Uses: eval.cost, eval.files, eval.statistics, eval.sweep, eval.tasks, eval.tasks.media, eval.terminal, eval.vlm.
"""
