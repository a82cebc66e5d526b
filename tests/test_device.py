"""Every method on a pretended GPU: tensors of two devices do not meet, and steps do not wait for the GPU."""

from __future__ import annotations

import inspect

import pytest
import torch

from harness.config.trial import method_class
from methods import METHODS
from tests.pretended import faulty
from tests.pretended.device import DeviceError, Generator, Pretended, waits
from tests.pretended.drive import SETTINGS, STEPS
from tests.pretended.process import Driven, drive, missing

MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
MIXES, READS = (f"tests.pretended.faulty:{name}" for name in ("Mixes", "Reads"))


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Driven]:
    """All methods, driven in one process."""
    jobs = [(setting, method) for setting in SETTINGS for method in METHODS]
    jobs += [("clip", method) for method in (MIXES, READS)]
    return {(d.setting, d.method): d for d in drive(jobs, tmp_path_factory.mktemp("pretended"))}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_on_a_device_and_does_not_wait_for_it(method, setting, driven):
    found = driven[setting, method]
    assert not found.error, found.error
    assert len(found.waits) == (STEPS if method_class(method).trains else 0)
    assert not any(found.waits), f"places at which the steps wait for the device: {found.waits}"


def test_a_method_that_mixes_devices_fails(driven):
    found = driven["clip", MIXES]
    assert "DeviceError: aten.mul.Tensor" in found.error
    assert not found.waits


def test_numbers_that_a_method_reads_in_its_step_are_counted_with_their_places(driven):
    found = driven["clip", READS]
    assert not found.error
    file = "a value from the device: tests/pretended/faulty.py"
    in_loss, in_backward = (inspect.getsourcelines(f)[1] for f in (faulty.Reads.loss, faulty.read))
    assert found.waits == [[f"{file}:{in_loss + 3}", f"{file}:{in_backward + 1}"]] * STEPS


# The rules --------------------------------------------------------------------------------------

CPU = torch.arange(6.0)
ROWS, MASK = torch.tensor([0, 2]), torch.tensor([True, False] * 3)


def there(values: torch.Tensor) -> Pretended:
    torch._C._ensureCUDADeviceGuardSet()  # as fake tensors have it: no driver is asked
    return Pretended(values.clone())


@pytest.mark.parametrize(
    ("act", "count"),
    [
        (lambda x: x + CPU[0], 0),  # a number goes along with the kernel
        (lambda x: x.masked_fill(x > 1, 0.0), 0),
        (lambda x: x[x.argsort()], 0),
        (lambda x: x[1:3], 0),
        (lambda x: x.repeat_interleave(2), 0),
        (lambda x: x.repeat_interleave(x.long(), output_size=15), 0),
        (lambda x: x.__setitem__(there(MASK), 0.0), 0),
        (lambda x: x.__setitem__(there(MASK), CPU[0]), 0),  # a `masked_fill`
        (lambda x: x.__setitem__(there(ROWS), 0.0), 0),
        (lambda x: there(torch.zeros(6)).copy_(x), 0),
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: bool((x > 1).any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.unique(), 1),
        (lambda x: x.long().bincount(), 1),
        (lambda x: x.equal(x), 1),
        (lambda x: x.masked_select(x > 1), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x[ROWS], 1),
        (lambda x: x.__setitem__(x > 1, there(CPU[:4])), 1),
        (lambda x: x.__setitem__(there(ROWS), CPU[0]), 1),
        (lambda x: x.repeat_interleave(x.long()), 1),
        (lambda x: x.copy_(CPU), 1),
        (lambda x: x.copy_(CPU, non_blocking=True), 0),
    ],
)
def test_what_waits_is_counted(act, count):
    with waits() as found:
        act(there(CPU))
    assert len(found) == count, found


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x + CPU,
        lambda x: x.view(2, 3) @ CPU.view(3, 2),
        lambda x: torch.cat([x, CPU]),
        lambda x: torch.stack([x[0], CPU[0]]),
        lambda x: torch.where(x > 1, x, CPU),
        lambda x: CPU[there(ROWS)],
        lambda x: x.__setitem__(there(ROWS), CPU[:2]),
        lambda x: x.index_select(0, ROWS),
        lambda x: x.scatter(0, ROWS, 1.0),
        lambda x: torch.nn.functional.embedding(ROWS, x.view(3, 2)),
        lambda x: x.add_(CPU),
        lambda x: CPU.clone().add_(x),
        lambda x: x.bernoulli(generator=Generator()),
    ],
)
def test_tensors_of_two_devices_do_not_meet(act):
    with pytest.raises(DeviceError):
        act(there(CPU))


def test_the_values_are_those_of_the_cpu():
    x = there(CPU)
    x[there(ROWS)] = there(torch.tensor([7.0, 8.0]))
    x.view(2, 3)[1].mul_(2)
    assert x.device == torch.device("cuda:0")
    assert x.tolist() == [7, 1, 8, 6, 8, 10]
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
