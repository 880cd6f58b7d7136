"""Files that are written whole or not at all, and bundled files that are what they were when they were made."""

import hashlib
import os
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def experiment(folder: Path, name: str) -> Path:
    """The file of an experiment that ships with the package.

    Raises:
        ValueError: for an unknown name; the message lists what there is.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"got {name!r}, expected one of {sorted(path.stem for path in folder.glob('*.json'))}")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a temporary neighbour of `path`, then put it in place in one move.

    Whoever reads `path` sees the old file or the new one, whenever the writer is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, checksum: str, remedy: str) -> bytes:
    """The bytes of `path`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its SHA-256 is not `checksum`. Both messages end with the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    content = path.read_bytes()
    if sha256(content) != checksum:
        raise ValueError(f"{path} is damaged (its SHA-256 is not {checksum[:12]}…): {remedy}")
    return content
