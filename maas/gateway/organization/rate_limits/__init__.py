"""``rate_limits`` of organisations, projects and keys."""
