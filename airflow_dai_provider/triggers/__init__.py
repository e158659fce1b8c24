"""Triggers of the DAI provider."""
