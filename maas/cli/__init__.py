"""The ``maas`` command."""
