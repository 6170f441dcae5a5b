"""Runs one bundle on processors: batching, prefix cache, sampling, grammars, speculation."""
