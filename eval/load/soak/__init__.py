"""A soak: many good and bad requests at once against one server, and what has to hold all the while.

In: a server's address and process.
Out: a `SoakResult`: answers compared, refusals, memory, places given back.
Uses: eval.load, eval.tasks, eval.tasks.media.
"""
