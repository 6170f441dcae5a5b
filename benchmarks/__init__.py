"""Measurements, each printed next to the peer it is held against."""
