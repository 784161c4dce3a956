"""How vtc talks to the stock model: what transformers calls things, taps on its modules, threads, and a tripwire.

In: a model of transformers.
Out: its names, windows, queries and keys; one error where it does not do what vtc takes for granted.
Uses: nothing of vtc.
"""
