"""The category of what vtc warns of."""


class VTCWarning(UserWarning):
    """Something that a caller of vtc should know, and that did not stop it."""
