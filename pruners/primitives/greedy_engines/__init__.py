"""How greedy choices are made: a batch in steps that never wait for the device, or on the CPU a picture at a time.

In: features and scores, checked by ``greedy``.
Out: columns in the order chosen, the same from both.
Uses: pruners.primitives.
"""
