"""Measure the CPU time of imports: ``import_timer.py BASE,... MODULE,...`` prints JSON."""

import json
import sys
import time
from importlib import import_module


def cost(modules: str) -> dict[str, float]:
    began, loaded = time.process_time(), len(sys.modules)
    for module in modules.split(","):
        import_module(module)
    return {"cpu": time.process_time() - began, "modules": len(sys.modules) - loaded}


HEAVY = {"aiohttp", "requests", "google.auth", "google.api_core", "grpc", "airflow.providers.google"}

base = cost(sys.argv[1])
already = HEAVY & set(sys.modules)
above = cost(sys.argv[2])
heavy = sorted(HEAVY & set(sys.modules) - already)
# Airflow may have written to standard output too; the last line is ours.
print("\n" + json.dumps({"base": base, "above": above, "heavy": heavy}))
