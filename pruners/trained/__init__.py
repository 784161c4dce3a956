"""Methods with a small network of their own: how it is kept in a file, and which model it belongs to.

In: a safetensors file that ``vtc train`` wrote.
Out: the network on the device of the tokens, or a refusal that says what does not fit.
"""
