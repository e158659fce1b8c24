"""A task's own ingests: when they are cancelled, resumed and recovered."""
