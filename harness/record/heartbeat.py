"""Who is running what, in the store: attempts with storage folders of their own see each other there.

A claim is a tag of the sweep's experiment, `running.NAME.TOKEN`; its owner renews it every `EVERY` seconds.
An attempt writes its claim, then reads all claims, and starts only where it finds no other one: of two, the
one that reads last sees what both have written, so they never both start. A claim that somebody has watched
for `STALE` seconds without a change is given up. No two clocks are compared.

Attempts that share a storage folder are kept apart by its locks, which end with their processes: a claim from
there is void as soon as its lock is free, without any wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.lib.files import atomic_write
from harness.lib.locks import Busy, acquire, is_locked
from harness.record.client import Client
from harness.record.types import SweepHandle

EVERY = 30.0
"""Seconds between heartbeats."""
STALE = 300.0
"""Seconds without a heartbeat after which a claim is given up: longer than MLflow pauses between two tries to
reach a server that was away."""
POLL = 5.0
"""Seconds between two looks of an observer."""
_SETTLE = 5.0  # seconds for which an attempt waits for one that started at once to withdraw
_PREFIX = "running."


@dataclass(frozen=True)
class Claim:
    """A sign of life of an attempt.

    Attributes:
        name: what is claimed: the id of a trial.
        token: of this claim alone.
        place: identifies the storage folder, and the sweep in it.
        beat: number of the heartbeat; at 0 the attempt may still withdraw.
        time: of the heartbeat, in seconds since 1970, by the clock of the owner.
    """

    name: str
    token: str
    host: str
    process: int
    place: str
    beat: int
    time: float

    @property
    def owner(self) -> str:
        """The process, for people."""
        return f"process {self.process} on {self.host}"

    @property
    def key(self) -> str:
        """The name of the tag."""
        return f"{_PREFIX}{self.name}.{self.token}"

    @property
    def seconds_ago(self) -> float:
        """Seconds since the heartbeat, as two clocks say: for people, and not to decide by."""
        return max(0.0, time.time() - self.time)


def read_claims(client: Client, experiment_id: str) -> list[Claim]:
    """All claims in an experiment."""
    claims = []
    for key, value in client.experiment_tags(experiment_id).items():
        if key.startswith(_PREFIX):
            name, _, token = key.removeprefix(_PREFIX).partition(".")
            with contextlib.suppress(ValueError, TypeError):  # of another version
                claims.append(Claim(name, token, **json.loads(value)))
    return claims


def place_of(handle: SweepHandle, storage: Path) -> str:
    """Identifies a storage folder wherever it is mounted, and the sweep in it."""
    with acquire(storage / "identity", wait=True):
        file = storage / "identity" / "id"
        if not file.exists():
            with atomic_write(file, "w") as stream:
                stream.write(uuid.uuid4().hex)
        return f"{file.read_text()} {handle.folder}"


class Hold:
    """A claim of this process, renewed by a thread until it is released.

    Whoever makes one holds the lock of the same name in the storage folder.

    Args:
        name: what is claimed.
        place: see `place_of`.
    """

    def __init__(self, client: Client, experiment_id: str, name: str, place: str) -> None:
        self._client, self._experiment = client, experiment_id
        host = socket.gethostname()
        self._claim = Claim(name, uuid.uuid4().hex, host, os.getpid(), place, 0, time.time())
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._confirmed, self._lost = time.time(), False

    def acquire(self) -> None:
        """Claim it.

        Raises:
            Busy: another process has, or may have.
            StoreError: the store does not answer.
        """
        self._write()
        try:
            self._settle()
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._renew, name="heartbeat", daemon=True).start()

    def _settle(self) -> None:
        """Go on only where no other claim is there. Of two that are new, the one of the higher token
        withdraws, and the other waits for that.
        """
        end = time.monotonic() + _SETTLE
        while others := self._others():
            withdraw = any(c.beat or c.token < self._claim.token for c in others)
            if withdraw or time.monotonic() > end:
                raise Busy(f"it is being run by {others[0].owner}, with a storage folder of its own")
            time.sleep(_SETTLE / 10)

    def _others(self) -> list[Claim]:
        """Claims of others on the same; those that are void are removed: this process has the lock."""
        others = []
        for claim in read_claims(self._client, self._experiment):
            if claim.name == self._claim.name and claim.token != self._claim.token:
                if claim.place == self._claim.place:
                    self._client.set_experiment_tag(self._experiment, claim.key, None)
                else:
                    others.append(claim)
        return others

    def confirm(self) -> None:
        """Make sure that it is still held: before a result is recorded.

        Raises:
            Busy: this process was silent for so long (a machine that slept) that another has taken over.
        """
        if abs(time.time() - self._confirmed) > STALE:
            self._beat()
        if self._lost:
            raise Busy("it was silent for so long that its claim was given up: another process may run it")

    def release(self) -> None:
        """Give it up. A store that does not answer keeps the claim until somebody finds it stale."""
        self._ended.set()
        with self._lock, contextlib.suppress(Exception):
            self._client.set_experiment_tag(self._experiment, self._claim.key, None)

    def _renew(self) -> None:
        pause = 1.0  # an attempt that is over at once needs no heartbeat
        while not self._ended.wait(min(pause, EVERY)):
            self._beat()
            pause = EVERY

    def _beat(self) -> None:
        """One heartbeat; where the store does not answer, none."""
        with self._lock, contextlib.suppress(Exception):
            if self._ended.is_set():
                return
            if self._claim.key not in self._client.experiment_tags(self._experiment):
                self._lost = True
                return
            self._claim = replace(self._claim, beat=self._claim.beat + 1, time=time.time())
            self._write()
            self._confirmed = time.time()

    def _write(self) -> None:
        content = {k: v for k, v in vars(self._claim).items() if k not in ("name", "token")}
        self._client.set_experiment_tag(self._experiment, self._claim.key, json.dumps(content))


class Watch:
    """Watches claims of other places, and removes those that are stale.

    Args:
        names: what is watched.
        place: the observer's own, where locks decide.
    """

    def __init__(self, client: Client, experiment_id: str, names: Collection[str], place: str) -> None:
        self._client, self._experiment, self._names, self._place = client, experiment_id, names, place
        self._seen: dict[str, tuple[int, float]] = {}  # by token: heartbeat, and when it was first seen
        self._looked = time.monotonic()

    def live(self) -> list[Claim]:
        """The claims that are not stale, as far as this observer knows. Raises StoreError."""
        claims = read_claims(self._client, self._experiment)
        now = time.monotonic()
        if now - self._looked > EVERY:  # the store was away, or this process slept: that shows nothing
            self._seen.clear()
        self._looked = now
        live = []
        for claim in claims:
            if claim.name not in self._names or claim.place == self._place:
                continue
            beat, since = self._seen.get(claim.token, (-1, now))
            if beat != claim.beat:
                since = now
            self._seen[claim.token] = claim.beat, since
            if now - since > STALE:
                self._client.set_experiment_tag(self._experiment, claim.key, None)
            else:
                live.append(claim)
        return live

    def first_live(self) -> Claim | None:
        """Wait until a claim is renewed, which is returned, or until all are gone."""
        before = {claim.token: claim.beat for claim in self.live()}
        while claims := self.live():
            for claim in claims:
                if claim.beat != before.get(claim.token):
                    return claim
            time.sleep(POLL)
        return None


@contextlib.contextmanager
def hold(client: Client, handle: SweepHandle, name: str, storage: Path) -> Iterator[None]:
    """Do what only one process may do at a time, whatever its storage: wait until it is this one's turn."""
    place = place_of(handle, storage)
    watch = Watch(client, handle.experiment_id, {name}, place)
    with acquire(storage / name, wait=True):
        while True:
            claimed = Hold(client, handle.experiment_id, name, place)
            try:
                claimed.acquire()
                break
            except Busy:
                watch.live()
                time.sleep(POLL)
        try:
            yield
        finally:
            claimed.release()


def is_claimed_elsewhere(client: Client, handle: SweepHandle, name: str, storage: Path) -> bool:
    """Whether a process with another storage folder has claimed a trial: its run is that one's. Raises
    StoreError.
    """
    place = place_of(handle, storage)
    return any(c.name == name and c.place != place for c in read_claims(client, handle.experiment_id))


def remove_void(client: Client, handle: SweepHandle, name: str, storage: Path, directory: Path) -> None:
    """Remove the claims on a trial of processes here that have ended without doing so.

    Args:
        directory: the trial's own, whose lock such a process would hold.
    """
    place = place_of(handle, storage)
    ours = [c for c in read_claims(client, handle.experiment_id) if (c.name, c.place) == (name, place)]
    if not is_locked(directory):  # asked after reading: who claims it now is not among them
        for claim in ours:
            client.set_experiment_tag(handle.experiment_id, claim.key, None)
