"""``vtc serve``: an OpenAI-compatible server of a pruned model, and a page to look at it.

In: a model, a method, what requests may ask for.
Out: an HTTP server.
Uses: eval, eval.tasks.media, eval.vlm, pruners, serve.generation, serve.requests, vtc.
"""
