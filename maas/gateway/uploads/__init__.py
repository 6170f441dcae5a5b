"""Uploads: large files in parts."""
