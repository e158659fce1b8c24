"""A sweep: select stray operations, cancel them, and report."""
