"""The stacks that are measured: how each is installed, configured, started and addressed."""
