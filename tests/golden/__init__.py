"""What earlier versions wrote: trajectories, whole results folders, and what `compare` said of them."""

import tarfile
from pathlib import Path

GOLDEN = Path(__file__).parent


def unpack(name: str, folder: Path) -> Path:
    """The results folder of that name, unpacked at `folder`."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        # Debian 12's Python 3.11.2 has no filters yet, and 3.12 warns without one
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder
