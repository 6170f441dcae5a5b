"""A device in a fleet: who it is, what it is told to run, what it tells of itself."""
