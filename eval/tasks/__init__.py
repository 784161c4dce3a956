"""What is asked: questions about pictures and videos, and sets of them.

In: -.
Out: `Question`, `TaskSet`.
Uses: eval.tasks.media.
"""
