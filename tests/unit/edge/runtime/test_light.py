"""What a device runs loads nothing heavy, and starts fast."""

import json
import subprocess
import sys

HEAVY = ("torch", "ray", "vllm", "transformers", "peft", "onnx", "sqlalchemy", "fastapi")
# Half a second, where nothing else runs. The bundle's own second is held by tests/e2e/test_onnx.py.
MAX_IMPORT_S = 5
CODE = """
import json, sys, time
started = time.process_time()
import maas.edge.runtime.cli.main, maas.edge.runtime.server.__main__, maas.edge.runtime.bench
import maas.edge.runtime.fleet.agent, maas.edge.runtime.fleet.trial
print(json.dumps([sorted(sys.modules), time.process_time() - started]))
"""


def test_the_runtime_loads_nothing_heavy_and_is_there_at_once():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    modules, import_s = json.loads(done.stdout)
    sys.stdout.write(f"imports: {import_s:.2f} s of a processor\n")
    assert 0 < import_s <= MAX_IMPORT_S
    assert not set(HEAVY) & set(modules)
    assert "onnxruntime" in modules
