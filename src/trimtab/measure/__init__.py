"""Measuring: replaying a workload against a running gateway, and the figures that come out of it."""
