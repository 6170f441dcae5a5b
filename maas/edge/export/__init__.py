"""Makes a bundle of a model: merged, shrunk, quantised, built, proved, packed."""
