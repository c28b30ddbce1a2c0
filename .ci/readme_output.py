#!/usr/bin/env python3
"""Compares the output blocks of README.md with what the program printed, numbers aside.

    python3 .ci/readme_output.py train LOG

Each line of the block after `<!-- output of NAME -->` must occur in the log with other numbers at most.
"""

import pathlib
import re
import sys

NUMBER = re.compile(r"\d[\d.]*( (k|M|G|B|KiB|MiB|GiB)\b)?")


def masked(line):
    return NUMBER.sub("#", line.rstrip())


name, log = sys.argv[1:]
readme = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()
block = re.search(rf"<!-- output of {name} -->\n```text\n(.*?)```", readme, re.DOTALL)
if not block:
    sys.exit(f"README.md has no block `output of {name}`")
printed = {masked(line) for line in pathlib.Path(log).read_text().splitlines()}
stale = [line for line in block.group(1).splitlines() if masked(line) not in printed]
for line in stale:
    print(f"README.md shows a line that `{name}` does not print: {line}")
sys.exit(bool(stale))
