"""Training of the bundled model from scratch: ``python -m vtc.eval.train --out DIR``."""
