"""The bundle: one file, content-addressed, signed, safe to unpack (docs/edge-bundles.md)."""
