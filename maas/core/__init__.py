"""Settings, the error tree, ids and the clock. Imports pydantic and the standard library only."""
