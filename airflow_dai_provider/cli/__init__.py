"""The commands of ``airflow dai``, for whoever is on call."""
