"""Operators of the DAI provider."""
