"""The commands of ``airflow dai``, for people on call."""
