"""Apache Airflow provider for Google's Video Creative Ingest API (DAI)."""

__version__ = "0.1.0"
