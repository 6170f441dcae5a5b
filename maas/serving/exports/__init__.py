"""Exports as jobs: whose turn it is, and the process that makes a bundle."""
