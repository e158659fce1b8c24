"""Notifiers of the DAI provider."""
