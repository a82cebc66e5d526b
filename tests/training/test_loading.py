from __future__ import annotations

import contextlib
import multiprocessing
import os

import pytest
import torch

from harness.data.pictures import BadPicture
from harness.training import loading
from harness.training.accelerator import make_accelerator
from harness.training.loading import Fetch, Plan, Pool, Request, load, on_device, one_ahead
from harness.training.run_trial import build_trainer
from methods.base import Batch, Pairs
from tests import small

WHOLE = {"locked": False, "cache": False, "pixel_cache": False}


class Source:
    """Inputs whose images name the process that loaded them; image 13 cannot be decoded."""

    def __init__(self, chunk=None, at_hand=()):
        self.at_hand = frozenset(at_hand)
        if chunk:
            self.chunk = chunk

    def images(self, index):
        if 13 in index:
            raise BadPicture("picture 13 cannot be decoded: truncated: it ends")
        return torch.stack([index, torch.full_like(index, os.getpid())], 1)

    def texts(self, index):
        return index[:, None] + 100

    def lengths(self, index):
        return None


def plans_of(images, count=3, drawn=None):
    """`count` plans of the same images, each with an auxiliary batch of two pairs of `meta`."""
    for number in range(count):
        if drawn is not None:
            drawn.append(number)
        pairs = Pairs(torch.tensor(images), torch.arange(len(images)))
        extra = Pairs(torch.tensor([2, 1]), torch.tensor([5, 6]), "meta")
        yield Plan(torch.arange(len(images)), pairs, number, {"extra": (torch.arange(2), extra)})


def alive():
    return len(multiprocessing.active_children())


def compared(batches):
    """What batches hold, without the processes that loaded them."""
    return [
        (b.seed, b.images[:, 0].tolist(), b.texts.tolist(), b.auxiliary["extra"].images[:, 0].tolist())
        for b in batches
    ]


@pytest.mark.parametrize("chunk", [None, 2])
def test_workers_give_the_batches_of_one_process(chunk):
    inputs = {"train": Source(chunk), "meta": Source(chunk)}
    images = [7, 3, 3, 9, 0, 1, 8, 7, 2, 4, 5]
    fetch = Fetch(inputs)
    expected = list(load(plans_of(images), fetch))
    assert compared(expected)[1] == (1, images, [[100 + k] for k in range(len(images))], [2, 1])
    with contextlib.closing(Pool(inputs, 2)) as pool:
        batches = list(load(plans_of(images), fetch, pool))
    assert compared(batches) == compared(expected)
    by = {int(process) for batch in batches for process in batch.images[:, 1]}
    assert os.getpid() not in by
    # In units, both workers share each batch; as a whole, one has it.
    assert len(set(batches[0].images[:, 1].tolist())) == (2 if chunk else 1)


def test_this_process_reads_what_is_at_hand():
    images = [7, 3, 3, 9]
    before = alive()
    with contextlib.closing(Pool({k: Source(2, ["images", "texts"]) for k in ("train", "meta")}, 2)) as pool:
        inputs = pool.inputs
        expected = compared(load(plans_of(images, 30), Fetch(inputs), pool))
        assert alive() == before
    for stored in (["train", "meta"], ["train"], ["meta"]):
        inputs = {k: Source(2, ["images"] if k in stored else []) for k in ("train", "meta")}
        with contextlib.closing(Pool(inputs, 2)) as pool:
            batches = list(load(plans_of(images, 30), Fetch(inputs), pool))
            assert alive() == before + 2
        assert compared(batches) == expected
        here = {b.images[0, 1].item() == os.getpid() for b in batches}
        assert here == {"train" in stored}
        here = {b.auxiliary["extra"].images[0, 1].item() == os.getpid() for b in batches}
        assert here == {"meta" in stored}


def test_distinct_images_are_loaded_once_in_units_of_at_least_a_chunk():
    pool = Pool({"train": Source(chunk=2)}, 2)
    parts, order = pool._divide(Request("train", "images", torch.tensor([5, 1, 5, 3, 9])))
    assert [p.index.tolist() for p in parts] == [[1, 3], [5, 9]]
    assert order.tolist() == [2, 0, 2, 1, 3]
    many = torch.arange(800)
    assert len(pool._divide(Request("train", "images", many))[0]) == loading.UNITS * 2
    assert len(pool._divide(Request("train", "texts", many))[0]) == 1
    nothing, _ = pool._divide(Request("train", "images", torch.arange(0)))
    assert [len(p.index) for p in nothing] == [0]


def test_workers_persist_over_passes_and_end_when_closed():
    inputs = {"train": Source(chunk=2), "meta": Source()}
    before = alive()
    with contextlib.closing(Pool(inputs, 2)) as pool:
        assert alive() == before  # none before they are needed
        seen = []
        for _ in range(3):
            batches = list(load(plans_of([4, 5, 6, 7]), Fetch(inputs), pool))
            seen.append({int(process) for batch in batches for process in batch.images[:, 1]})
        assert seen[0] == seen[1] == seen[2]
        assert alive() == before + 2
        # A pass that is given up, and one within another
        first = next(load(plans_of([1, 2]), Fetch(inputs), pool))
        for outer in load(plans_of([1, 2]), Fetch(inputs), pool):
            assert compared([outer]) != compared(load(plans_of([8, 9], 1), Fetch(inputs), pool))
            assert outer.images[:, 0].tolist() == first.images[:, 0].tolist() == [1, 2]
    assert alive() == before
    with contextlib.closing(Pool(inputs, 1)) as pool:
        assert len(list(load(plans_of([1, 2]), Fetch(inputs), pool))) == 3  # a closed one may start again
        pool.close()
        assert len(list(load(plans_of([1, 2]), Fetch(inputs), pool))) == 3
    assert alive() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_picture_is_named_without_a_traceback(workers):
    inputs = {"train": Source(chunk=2), "meta": Source()}
    with contextlib.closing(Pool(inputs, workers)) as pool:
        with pytest.raises(BadPicture) as error:
            list(load(plans_of([1, 2, 13]), Fetch(inputs), pool))
        assert str(error.value) == "picture 13 cannot be decoded: truncated: it ends"
        assert len(list(load(plans_of([1, 2]), Fetch(inputs), pool))) == 3


def test_plans_are_drawn_when_they_are_needed():
    inputs = {"train": Source(chunk=2), "meta": Source()}
    drawn = []
    batches = load(plans_of([1, 2], 100, drawn), Fetch(inputs))
    assert not drawn
    next(batches)
    assert drawn == [0]
    with contextlib.closing(Pool(inputs, 1)) as pool:
        drawn = []
        next(load(plans_of([1, 2], 100, drawn), Fetch(inputs), pool))
        assert len(drawn) < 10


def test_a_split_that_is_not_allowed_is_not_loaded():
    with pytest.raises(KeyError, match="meta"):
        list(load(plans_of([1]), Fetch({"train": Source()}), Pool({"train": Source(), "meta": Source()})))


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_no_workers(fails):
    trial = small.trial("small_loss", epochs=2, backbone=small.backbone(locked=False, cache=False))
    before, most = alive(), []

    def heartbeat(where):
        most.append(alive() - before)
        if fails and where.startswith("epoch 1"):
            raise RuntimeError("stop")

    data = small.load()
    trainer = build_trainer(
        trial,
        data,
        trial.noise_index(data),
        make_accelerator("fp32"),
        workers=1,
        heartbeat=heartbeat,
    )
    with pytest.raises(RuntimeError, match="stop") if fails else contextlib.nullcontext():
        trainer.fit()
    assert max(most) == 1
    assert alive() == before


def test_evaluation_decodes_once_for_all_networks():
    trial = small.trial("ncr", backbone=small.backbone(**WHOLE))
    data = small.load()
    trainer = build_trainer(trial, data, trial.noise_index(data), make_accelerator("fp32"))
    assert trainer.method.n_networks == 2
    source, decoded = trainer.inputs["dev"], []
    transform = source.transform
    source.transform = lambda picture: (decoded.append(1), transform(picture))[1]
    scores = trainer.similarities("dev")
    assert len(decoded) == len(data["dev"].images)
    # As each network for itself ranks
    index = torch.arange(len(data["dev"].images)), torch.arange(len(data["dev"].captions))
    with torch.no_grad():
        alone = sum(
            trainer.method.score(
                k, net.encode_image(source.images(index[0])), net.encode_text(source.texts(index[1]))
            )
            / 2
            for k, net in enumerate(trainer.method.networks)
        )
    assert torch.equal(scores, alone)


# To the device -------------------------------------------------------------------------------------


def test_one_item_is_sent_ahead():
    log = []
    for item in one_ahead(iter("abc"), lambda x: log.append(f"send {x}") or x, lambda x: x.upper()):
        log.append(f"use {item}")
    assert log == ["send a", "send b", "use A", "send c", "use B", "use C"]
    assert list(one_ahead([], str, str)) == []
    assert list(one_ahead([1], str, str)) == ["1"]


def test_what_goes_wrong_ahead_and_closing_early_reach_the_source():
    closed = []

    def source():
        try:
            yield from (1, 2)
            raise BadPicture("picture 3")
        finally:
            closed.append(True)

    with pytest.raises(BadPicture, match=r"^picture 3$"):
        list(one_ahead(source(), str, str))
    assert closed == [True]
    ahead = one_ahead(source(), str, str)
    next(ahead)
    ahead.close()
    assert closed == [True, True]


class Tracked:
    """Stands in for a tensor or batch that is pinned and copied."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def pin_memory(self):
        return Tracked(f"pinned {self.name}", self.log)

    def record_stream(self, stream):
        self.log.append(f"{self.name} belongs to {stream}")


def test_a_gpu_waits_for_the_copy_of_its_batch_and_for_no_other(monkeypatch):
    """The order of operations; the streams are stand-ins."""
    log, copies = [], iter(range(10))

    class Stream:
        def __init__(self, device):
            self.device = device

        def record_event(self):
            return f"copy {next(copies)}"

    class Computing:
        def __str__(self):
            return "computing"

        def wait_event(self, event):
            log.append(f"computing waits for {event}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computing())

    def move(item):
        log.append(f"copy of {item.name}")
        return item

    for item in on_device([Tracked(n, log) for n in "ab"], move, torch.device("cuda")):
        log.append(f"step on {item.name}")
    assert log == [
        "copy of pinned a",
        "copy of pinned b",
        "computing waits for copy 0",
        "pinned a belongs to computing",
        "step on pinned a",
        "computing waits for copy 1",
        "pinned b belongs to computing",
        "step on pinned b",
    ]


def test_on_a_cpu_batches_are_moved_as_they_come():
    drawn = []
    source = (drawn.append(k) or torch.tensor(k) for k in range(3))
    moved = on_device(source, lambda x: x + 10, torch.device("cpu"))
    assert int(next(moved)) == 10
    assert drawn == [0]


def test_pixels_keep_their_type_on_the_way():
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    auxiliary = {"extra": Batch(torch.arange(1), torch.zeros(1, 2), torch.zeros(1, 5).long(), 0, 1, 0)}
    batch = Batch(torch.arange(2), pixels, torch.zeros(2, 5).long(), 0, 2, 0, auxiliary=auxiliary)
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert moved.images.dtype == torch.uint8
    assert moved.texts.dtype == torch.int64
    assert moved.auxiliary["extra"].images.dtype == torch.float64
