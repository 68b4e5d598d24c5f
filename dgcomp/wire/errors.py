"""The one error that reading a message can raise."""


class WireError(ValueError):
    """A message is damaged, truncated, of another version or of another model; the text says which, in a sentence."""
