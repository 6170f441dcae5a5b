"""What a device runs loads nothing heavy, and starts fast."""

import json
import subprocess
import sys

HEAVY = ("torch", "ray", "vllm", "transformers", "peft", "onnx", "sqlalchemy", "fastapi")
CODE = """
import json, sys, time
started = time.perf_counter()
import maas.edge.runtime.cli.main, maas.edge.runtime.server.__main__, maas.edge.runtime.bench
import maas.edge.runtime.fleet.agent, maas.edge.runtime.fleet.trial
print(json.dumps([sorted(sys.modules), time.perf_counter() - started]))
"""


def test_the_runtime_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    modules, _ = json.loads(done.stdout)
    assert not set(HEAVY) & set(modules)
    assert "onnxruntime" in modules
