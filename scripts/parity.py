"""Runs a folder of parity cases: what reference implementations returned, against this project.

    python scripts/parity.py CASES_DIR [--only PREFIX] [--padded]

One line a case (largest error with its bound, pass or fail, arrays skipped and why), a line per method, and last
`N passed, N failed, N not covered`. Exit 0 when none failed, 1 when some did, 2 when the folder cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mil_jax.errors import UserError
from tests.parity.runner import run_folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run parity cases.", epilog="example: python scripts/parity.py tests/parity/cases"
    )
    parser.add_argument("cases", type=Path, help="folder of *.npz cases")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only files whose name starts with PREFIX")
    parser.add_argument(
        "--padded", action="store_true", help="pad every bag with rows of NaN to a bucket shared by its variant"
    )
    arguments = parser.parse_args()
    try:
        failed = run_folder(arguments.cases, arguments.only, arguments.padded, lambda line: print(line, flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
