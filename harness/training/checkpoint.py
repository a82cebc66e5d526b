"""Checkpoints of a running trial: complete, or not used.

They are in the trial's own directory, on storage that all its processes see; it is removed when the trial is
recorded as finished.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import IO, Any, cast

import torch

from harness.lib.files import atomic_write

_KEPT = 2  # the newest, and the one before for where the newest is damaged
_DIGITS = 32  # of the SHA-256 in a name


class _Digesting:
    """A stream that hashes what is written to it, so that a checkpoint of gigabytes is not read again."""

    def __init__(self, stream: IO[bytes], digest: Any) -> None:
        self.stream, self.digest = stream, digest

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.stream.write(content)

    def flush(self) -> None:
        self.stream.flush()


class Checkpoints:
    """The checkpoints of one trial: `epoch_0003.<SHA-256>.pt` for three epochs done.

    A file is written under another name and renamed, so that it is complete; its name has the digest of its
    content, so that damage by a disk or a copy is detected.

    Args:
        directory: where they are.
        minutes: the least time between two of them; those of a large model take longer than a short epoch.
    """

    def __init__(self, directory: Path, minutes: float = 0.0) -> None:
        self.directory, self.minutes = directory, minutes
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the least time has passed since the last one, or since the attempt began."""
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, epoch: int, content: dict[str, Any]) -> None:
        """Keep the state after `epoch` epochs, and the checkpoint before it; older ones are removed.

        Raises:
            OSError: it cannot be written (a full disk); those that are there stay.
        """
        for unfinished in self.directory.glob(".epoch_*.tmp"):  # of an attempt that was killed while it saved
            unfinished.unlink(missing_ok=True)
        name = f"epoch_{epoch:04d}"
        digest = hashlib.sha256()
        try:
            with atomic_write(
                self.directory / name,
                sync=True,
                final_name=lambda _: f"{name}.{digest.hexdigest()[:_DIGITS]}.pt",
            ) as stream:
                torch.save(content, cast(IO[bytes], _Digesting(stream, digest)))
        except (OSError, RuntimeError) as error:  # torch's writer hides a full disk behind a RuntimeError
            raise OSError(
                f"the checkpoint of epoch {epoch} cannot be written to {self.directory}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        self._last = time.monotonic()
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self, *, at_most: float) -> tuple[Path | None, list[str]]:
        """The newest valid file of at most `at_most` epochs, and what is wrong with newer ones."""
        problems = []
        for file in self._files():
            epoch, digest = _epoch(file), file.name.split(".")[1]
            if epoch > at_most:
                problems.append(
                    f"the checkpoint of {epoch} epochs is not used: only {at_most:g} are on record"
                )
            elif not _valid(file, digest):
                problems.append(
                    f"the checkpoint of {epoch} epochs is damaged (its content is not what was written)"
                )
            else:
                return file, problems
        return None, problems

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(
            self.directory.glob("epoch_*.*.pt"),
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
        return hashlib.file_digest(stream, "sha256").hexdigest()[:_DIGITS]


def _valid(file: Path, digest: str) -> bool:
    try:
        return _digest(file) == digest
    except OSError:
        return False
