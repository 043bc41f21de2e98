"""The package knows no runtime."""

import subprocess
import sys


def test_parity_imports_neither_torch_nor_a_runtime():
    code = "import sys, lucid_deploy.parity; print(sorted({'torch', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)))"
    # lucid_deploy.runtimes.session is all that parity needs of the runtimes.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
