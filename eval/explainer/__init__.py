"""Training of the network behind the ``explainer`` method: ``vtc train-explainer``."""
