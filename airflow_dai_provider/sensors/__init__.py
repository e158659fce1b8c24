"""Sensors of the DAI provider."""
