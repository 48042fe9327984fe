"""What is printed beside a measured number: date, commit, hardware, versions."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def commit() -> str:
    """The commit of this package where it is a checkout, with a + where files differ from it; else nothing."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def hardware(device: str, count: int = 1) -> str:
    """`count` GPUs by name, or this machine's cores."""
    if device == "cuda":
        import torch

        return f"{count} x {torch.cuda.get_device_name(0)}"
    return f"{os.cpu_count()} cores {_processor()}".strip()


def _processor() -> str:
    """As Linux names it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
