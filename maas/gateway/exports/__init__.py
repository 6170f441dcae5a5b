"""Exports on the wire: from a model to a bundle."""
