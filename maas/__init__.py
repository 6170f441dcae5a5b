"""An open Model-as-a-Service platform."""
