"""Files: taken in as they come, listed, handed back."""
