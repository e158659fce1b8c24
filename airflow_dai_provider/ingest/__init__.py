"""A task's own ingests: guarded, saved for the next try, recovered after a lost response."""
