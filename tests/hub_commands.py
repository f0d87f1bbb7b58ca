"""The process behind `hub.Commands`: reads commands, a JSON object a line, and answers each with its exit status."""

import importlib
import json
import os
import sys
from pathlib import Path

from rlhf_kit.cli import main
from tests.forked import forked

# What commands import, once: a fork has it.
for name in sys.argv[1:]:
    importlib.import_module(f"rlhf_kit.{name}")

for line in sys.stdin:
    asked = json.loads(line)
    child = forked(main, asked["argv"], Path(asked["log"]), asked["environment"])
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()
