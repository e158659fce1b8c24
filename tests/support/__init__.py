"""What many tests need. Each module holds one thing; those with fixtures for all tests are plugins of tests/conftest.py.

Fixtures for all tests:

- ``clock``: time that passes when told to
- ``emulators``: emulators of the service on that clock, and the requests that they got
- ``tiny_server``: a server that can misbehave
- ``token_server``: the one token server, and the key that names it
- ``connections``: Google Cloud connections
- ``authorities``: the certificate authorities that a client trusts
- ``log``: the log recorder
- ``task_instance``: stand-ins for a task instance and for the store across tries
- ``dag_runs``: runs of a DAG on a real metadata database

To import from:

- ``payloads``: the one builder of creatives, and of metadata
- ``rpc_codes``: the one table of rpc codes
- ``hooks``: hooks that are out of reach of the real environment, and their calls
- ``event_loop``: an event loop that nothing may be left on
- ``authentication``, ``credentials``, ``async_sessions``: tokens, accounts, and sessions that use them
- ``create_tasks``, ``sweep_tasks``, ``triggers``: tasks and triggers, made and run to their end
- ``deadlines``: Deadline callbacks in a triggerer
- ``airflow_versions``: where the versions of Airflow keep what the tests ask of them
"""
