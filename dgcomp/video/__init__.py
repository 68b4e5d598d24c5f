"""Detection in video: how late objects are first seen, and how to see them early at little cost."""
