"""``vtc plan``: what pruning will be worth on a model and a device, from the model's configuration alone.

In: a model's configuration and processor, the size of a picture, what is kept, batches, a device.
Out: tokens, FLOPs, bytes and times by part, the speed-up to expect, and a sentence that says it.
Uses: eval.check.tiny_model, eval.cost, eval.stability, eval.terminal, eval.vlm, methods, models, models.layout,
models.stock, pruners, vtc.
"""
