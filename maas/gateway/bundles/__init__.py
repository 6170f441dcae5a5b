"""Bundles on the wire: what exports made, read in ranges."""
