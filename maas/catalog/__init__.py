"""Model cards, licences, weight sources and the fit estimate."""
