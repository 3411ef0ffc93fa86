"""Our own instruments: a mock upstream, a load generator, and readings of /proc."""
