"""A sweep: which of the listed operations it picks, and what became of each of them."""
