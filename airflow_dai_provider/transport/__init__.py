"""HTTP sessions, credentials and the errors of both HTTP libraries."""
