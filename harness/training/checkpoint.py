"""Checkpoints of a running trial: whole, or not used.

They lie in the trial's own folder, on storage that all its processes see, which goes when the trial is
recorded as finished.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

_KEPT = 2  # the newest, and the one before for where the newest is damaged


class Checkpoints:
    """The checkpoints of one trial: `epoch_0003.<SHA-256>.pt` for three epochs done.

    Written aside and renamed, so a file under its name is whole; the name says what the content must hash to,
    so one that a disk or a copy has damaged is told from one that is sound.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, content: dict[str, Any]) -> None:
        """Keep the state after so many epochs; of the older ones, the one before stays.

        Raises:
            OSError: it cannot be written (a full disk); those that are there stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / "saving.tmp"
        try:
            with open(aside, "wb") as stream:
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, self.folder / f"epoch_{epoch:04d}.{_digest(aside)}.pt")
        except (OSError, RuntimeError) as error:  # torch's writer hides a full disk behind a RuntimeError
            aside.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint of epoch {epoch} cannot be written to {self.folder}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self, *, at_most: float) -> tuple[Path | None, list[str]]:
        """The newest sound file of at most so many epochs, and what is wrong with newer ones, in words."""
        faults = []
        for file in self._files():
            epoch, digest = _epoch(file), file.name.split(".")[1]
            if epoch > at_most:
                faults.append(f"the checkpoint of {epoch} epochs is not used: only {at_most:g} are on record")
            elif not _sound(file, digest):
                faults.append(
                    f"the checkpoint of {epoch} epochs is damaged (its content is not what was written)"
                )
            else:
                return file, faults
        return None, faults

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(
            self.folder.glob("epoch_*.*.pt"),
            key=lambda file: (_epoch(file), file.stat().st_mtime_ns),
            reverse=True,
        )


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; plain data and tensors only."""
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _epoch(file: Path) -> int:
    return int(file.name.split(".")[0].removeprefix("epoch_"))


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _sound(file: Path, digest: str) -> bool:
    try:
        return _digest(file) == digest
    except OSError:
        return False
