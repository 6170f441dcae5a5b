"""Makes a model smaller before it is quantised: fewer, narrower blocks and a short recovery."""
