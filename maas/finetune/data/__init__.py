"""Training data: how it is rendered into tokens, and what is wrong with it."""
