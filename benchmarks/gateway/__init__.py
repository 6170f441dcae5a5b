"""The gateway in front of a mock engine, next to its peers."""
