"""The data plane: raw ASGI from the client's bytes to the engine's and back."""
