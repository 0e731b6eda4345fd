"""peft knows this package's methods after `import peftkit`, in whichever order the two are imported."""
import subprocess
import sys
from pathlib import Path

import pytest

import peftkit

ROOT = Path(peftkit.__file__).parents[1]
KNOWN = "print('ADALINK' in __import__('peft.mapping').mapping.PEFT_TYPE_TO_TUNER_MAPPING)"


def output(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("imports", ["import peftkit; from peft import PeftModel", "import peft.tuners.lora, peftkit"])
def test_either_order_of_imports_will_do(imports):
    assert output(f"{imports}\n{KNOWN}") == "True"


def test_importing_peftkit_does_not_import_peft_and_leaves_one_watch():
    code = """
import sys, importlib, peftkit
assert "peft" not in sys.modules and "torch" not in sys.modules
importlib.reload(peftkit)
from peftkit.announce import _Watch
print(sum(isinstance(finder, _Watch) for finder in sys.meta_path))
import peft
print(sum(isinstance(finder, _Watch) for finder in sys.meta_path))
"""
    assert output(code).split() == ["1", "0"]
