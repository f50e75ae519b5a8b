"""``python -m latency_tables``: the table commands in an environment of pandas, numpy and pyyaml alone."""

import sys

from latency_tables.cli import main
from latency_tables.terminal import fault, settle, warn

if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # the one place where a fault of ours becomes a sentence
        warn(f"nas: {fault(error)}")
        code = 70
    settle()
    sys.exit(code)
