"""A small random model of a configuration: where it comes from, shrunk, built.

In: a model's name or configuration.
Out: a model of the same kinds of layers, in seconds.
Uses: vtc.
"""
