"""A child that answers with its environment."""

from __future__ import annotations

import os

from device_profiler.child import serve

if __name__ == "__main__":
    serve({"environment": lambda: dict(os.environ)})
