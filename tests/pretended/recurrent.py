"""The fused step of a GRU, which PyTorch has for GPUs only, as plain operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def gru_cell(
    given: Tensor,
    hidden: Tensor,
    before: Tensor,
    bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next state, and what the backward pass needs.

    Args:
        given: gates from the input [B, 3 D]: reset, update, new.
        hidden: gates from the state [B, 3 D].
        before: the state [B, D].
        bias: [3 D].
        hidden_bias: [3 D].
    """
    if bias is not None:
        given, hidden = given + bias, hidden + hidden_bias
    (reset, update, new), (hidden_reset, hidden_update, hidden_new) = given.chunk(3, 1), hidden.chunk(3, 1)
    reset, update = (reset + hidden_reset).sigmoid(), (update + hidden_update).sigmoid()
    new = (new + reset * hidden_new).tanh()
    return new + update * (before - new), torch.cat([reset, update, new, before, hidden_new], 1)


def gru_cell_backward(gradient: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of `gru_cell`, in their order."""
    reset, update, new, before, hidden_new = workspace.chunk(5, 1)
    of_update = gradient * (before - new) * (1 - update) * update
    of_new = gradient * (1 - update) * (1 - new * new)
    of_reset = of_new * hidden_new * (1 - reset) * reset
    given = torch.cat([of_reset, of_update, of_new], 1)
    hidden = torch.cat([of_reset, of_update, of_new * reset], 1)
    biases = (given.sum(0), hidden.sum(0)) if has_bias else (None, None)
    return given, hidden, gradient * update, *biases


KERNELS: dict[Any, Callable[..., tuple[Tensor | None, ...]]] = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
}
