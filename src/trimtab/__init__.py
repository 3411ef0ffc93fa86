"""Trimtab: the control panel for a production LLM application."""

__version__ = "0.1.0"
