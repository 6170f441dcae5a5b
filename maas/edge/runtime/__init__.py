"""What a device installs: bundles, the engine, its server. Neither torch nor ray in here."""
