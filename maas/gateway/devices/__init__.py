"""``/v1/devices``: the fleet; what devices send themselves comes in by a door of its own."""
