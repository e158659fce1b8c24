"""Helpers that many tests need. Each module holds one thing; fixtures for all tests are plugins of tests/conftest.py.

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
- ``assets``: the asset of the records of owners in it

To import from:

- ``payloads``: the one builder of creatives, and of metadata
- ``rpc_codes``: the one table of rpc codes
- ``hooks``, ``sessions``: hooks out of reach of the real environment, their calls, and their sessions
- ``event_loop``: an event loop on which nothing may be left
- ``authentication``, ``credentials``: tokens, accounts, and ways to authenticate
- ``ingests``, ``strays``: create tasks and sweeps, run to their end
- ``hostile``: any JSON that a server can send, and what stores it as Airflow does
- ``deadlines``: Deadline callbacks in a triggerer
- ``tunnel``: a proxy whose tunnels end at one emulator
- ``airflow_versions``: where the versions of Airflow keep what the tests ask of them
- ``source_strings``: the messages in the provider's source
- ``threads``: a test's own thread: it waits for another one, and is interrupted by a signal
- ``processes``, ``interruption``: processes that tests start, and how they are stopped
- ``servers``, ``postgresql``, ``redis_server``: servers for the tests that need a real database or a broker
"""
