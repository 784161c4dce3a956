"""``vtc check``: does vtc work with this model and the transformers that is installed?

A tiny random model of the very configuration (``shrink``, ``build``) gets prompts of every shape (``media``,
``prompts``), and what pruning gives is compared with the untouched model under masks (``reference``, ``contracts``).
"""
