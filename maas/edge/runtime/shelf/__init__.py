"""Bundles on a device: fetched, checked, switched to and back, whatever is cut off when."""
