"""The one thread that runs the model: its queue, a request's generation, and two of them side by side.

In: requests that were checked.
Out: text as it comes, and what it took.
Uses: eval.cost, eval.inspect, eval.tasks, eval.tasks.media, eval.vlm, serve.requests, vtc.
"""
