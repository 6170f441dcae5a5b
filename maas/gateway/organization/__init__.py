"""``/v1/organization``: who may do what and use how much, in the shapes of OpenAI's admin API."""
