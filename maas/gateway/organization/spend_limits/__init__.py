"""``spend_limit`` of organisations and projects."""
