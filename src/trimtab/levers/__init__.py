"""The levers, one file each: a frozen `Config` and a `build`; the file name is the kind in the configuration."""
