"""The ``maas-edge`` command: bundles on this device."""
