"""OpenAI wire objects, one module a resource, and server-sent events."""
