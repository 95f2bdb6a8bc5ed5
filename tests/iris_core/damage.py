"""What a power cut, a bad disk or a hand does to a file or folder of a store."""

from __future__ import annotations

import shutil
from pathlib import Path


def damage(path: Path, kind: str) -> None:
    """Damages what lies at `path`; of a folder its largest file, where the kind is one of content."""
    if kind in CONTENT:
        inner = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        target = max(inner, key=lambda each: each.stat().st_size)
        target.write_bytes(CONTENT[kind](target.read_bytes()))
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "other type":
        path.mkdir() if path.suffix else path.write_text("a file")
        if path.is_dir():
            (path / "within").write_text("a file")
    if kind == "dangling":
        path.symlink_to("nowhere")


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 1 for byte in content[middle : middle + 1]) + content[middle + 1 :]


CONTENT = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": _flip,
    "zeros": lambda content: bytes(len(content)),
    "other": lambda content: b'{"valid": "JSON of another kind"}',
}
DAMAGES = [*CONTENT, "missing", "other type", "dangling"]
