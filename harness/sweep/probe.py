"""What is asked of each node of a cluster before a sweep starts. (It imports little, so that the answer comes
at once.)
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from harness.lib.locks import is_locked
from harness.record.provenance import harness_digest

SERVER = "`mlflow server --host 0.0.0.0 --allowed-hosts 'HOST:5000'`"
"""How to start a tracking server that other machines reach: MLflow refuses requests by any other name."""


def probe(node: str, directory: Path, working: str, uri: str, code: str) -> list[str]:
    """Run on a node: what it lacks, as texts that continue its name.

    Args:
        directory: locked by the machine that asks, and has a file `ours`; the node writes another.
        working: where the sweep was started.
        uri: of the tracking server.
        code: `harness_digest` there.
    """
    errors = []
    try:
        if (directory / "ours").read_text() != directory.name:
            raise OSError("it holds something else")
        (directory / node).write_text(node)
        if not is_locked(directory):
            errors.append(
                f"locks in {directory.parent} are not seen by other nodes: mount it with locking (NFS: not "
                f"`nolock`), or name another directory with --storage"
            )
    except OSError as error:
        errors.append(
            f"does not share the directory {directory.parent} with this machine ({error.strerror or error}): "
            f"name one on storage that all nodes see with --storage"
        )
    if not os.path.isdir(working):
        errors.append(
            f"has no directory {working}, to which the paths in the sweep file are relative: start the sweep "
            f"in one that all nodes see"
        )
    if harness_digest() != code:
        errors.append("has another version of this code: install the same on all nodes")
    place = urlsplit(uri)
    try:
        socket.create_connection(
            (place.hostname or "", place.port or (443 if place.scheme == "https" else 80)), timeout=10
        ).close()
    except OSError as error:
        errors.append(
            f"does not reach the tracking server {uri} ({error.strerror or error}): start {SERVER}, and name "
            f"it by an address that all nodes know with --tracking-uri"
        )
    return errors
