import torch

from harness.backbones.rows import sum_over_processes


def test_what_is_sent_is_contiguous(monkeypatch):
    """NCCL requires it, and gloo does not."""
    sent = []
    monkeypatch.setattr("torch.distributed.all_reduce", sent.append)
    x = torch.randn(3, 4).T.requires_grad_()
    assert not x.is_contiguous()
    total = sum_over_processes(x)
    total.backward(torch.randn(3, 4).T)
    assert [t.is_contiguous() for t in sent] == [True, True]
    assert torch.equal(total, x)
