"""Hooks of the DAI provider."""
