"""One page about a run, made from whatever its folder holds."""

from nas.report.report import write_report

__all__ = ["write_report"]
