"""``python -m latency_tables``: the table commands in an environment of pandas, numpy and pyyaml alone."""

from latency_tables.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
