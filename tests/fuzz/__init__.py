"""An exactness fuzzer: random models, methods, prompts and ways to run, each held against the masked reference.

``python tests/fuzz`` runs it for hours, ``test_fuzz.py`` for a minute.
"""
