"""Whether a lever costs quality: paired bounds, a gate over strata, and a monitor for production. Pure; no NumPy."""
