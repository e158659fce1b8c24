"""Pure protocol logic: no I/O, no Airflow and no HTTP library."""
