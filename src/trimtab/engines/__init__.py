"""Upstreams, one file a kind: a frozen `Config` and a `build`; the file name is the kind in the configuration."""
