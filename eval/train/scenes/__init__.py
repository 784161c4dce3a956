"""Synthetic scenes, their questions and the vocabulary of the bundled model.

Everything here needs only numpy, Pillow and tokenizers, so that the data set can be rebuilt
and checked without torch.

In: a seed. Out: pictures, questions, answers.
Uses: nothing of vtc.
"""
