"""The harness's side of a step: gradients over processes, clipping, schedule, AdamW, and looking one step
ahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.rows import sums_over_processes
from harness.config.trial import TrainingConfig
from methods.base import Group


class Optimizers:
    """One AdamW for each group of parameters; see `methods.base.Optimizers` for the contract.

    Args:
        groups: the method's groups.
        config: learning rate and its schedule (linear warm-up, then a cosine to zero or steps), AdamW's
            settings; weight decay spares biases, norms and scalars.
        steps_per_epoch: optimizer steps of a network in an epoch.
        processes: how many share the batch.
    """

    def __init__(
        self, groups: Mapping[str, Group], config: TrainingConfig, *, steps_per_epoch: int, processes: int
    ) -> None:
        self.config, self.processes = config, processes
        self.total_steps = config.epochs * steps_per_epoch
        self.decay_steps = None
        if config.decay_epochs is not None:
            self.decay_steps = [epoch * steps_per_epoch for epoch in config.decay_epochs]
        self.parameters = {name: dict(group.parameters) for name, group in groups.items()}
        self.base_lr = {name: config.lr if group.lr is None else group.lr for name, group in groups.items()}
        self.adam = {name: self._adam(list(p.values())) for name, p in self.parameters.items()}
        self._siblings: dict[str, tuple[list[nn.Parameter], torch.optim.AdamW]] = {}
        self.factor = 0.0

    def at_step(self, step: int) -> None:
        """Set the schedule to a network's optimizer step, from 0."""
        if step < self.config.warmup_steps:
            self.factor = (step + 1) / self.config.warmup_steps
        elif self.decay_steps is not None:
            self.factor = 0.1 ** sum(step >= decay for decay in self.decay_steps)
        else:
            rest = max(1, self.total_steps - self.config.warmup_steps)
            self.factor = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.config.warmup_steps) / rest)))

    def learning_rate(self, group: str) -> float:
        """Learning rate of a group in the current step."""
        return self.base_lr[group] * self.factor

    def update(self, loss: Tensor, *groups: str) -> None:
        """Take an optimizer step of the named groups on the gradients of `loss`."""
        parameters = [p for name in groups for p in self.parameters[name].values()]
        gradients = iter(self._mean_gradients(loss, parameters))
        for name in groups:
            self._step_on([next(gradients) for _ in self.parameters[name]], name)

    def step(self, gradients: Mapping[str, Tensor], group: str) -> None:
        """Take an optimizer step of a group on given gradients, which are left as they are."""
        self._step_on([g.clone() for g in gradients.values()], group)  # clipping is in place

    def look_ahead(self, gradients: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Parameters of a group after one step on the gradients, taken with a copy of its optimizer."""
        weights: list[Tensor] = list(self.parameters[group].values())
        ours = self.adam[group].state
        sibling, adam = self._sibling(group)
        with torch.no_grad():
            torch._foreach_copy_([*sibling], weights)
            if not ours:
                adam.state.clear()
            elif not adam.state:
                for copy, weight in zip(sibling, weights, strict=True):
                    adam.state[copy] = {key: value.clone() for key, value in ours[weight].items()}
            else:
                for key in ours[weights[0]]:
                    values = [ours[weight][key] for weight in weights]
                    torch._foreach_copy_([adam.state[copy][key] for copy in sibling], values)
        rate = self.learning_rate(group)
        self._step(adam, sibling, [g.clone() for g in gradients.values()], rate)
        return dict(zip(self.parameters[group], (p.detach() for p in sibling), strict=True))

    def gradients(
        self, loss: Tensor, group: str, *, create_graph: bool = False, retain_graph: bool = False
    ) -> dict[str, Tensor]:
        """Gradients of `loss` by parameter name, averaged over processes."""
        weights = self.parameters[group]
        gradients = self._mean_gradients(
            loss, list(weights.values()), create_graph=create_graph, retain_graph=create_graph or retain_graph
        )
        return dict(zip(weights, gradients, strict=True))

    def reset(self, group: str) -> None:
        """Give a group a new optimizer; its schedule goes on."""
        self.adam[group] = self._adam(list(self.parameters[group].values()))

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizers, by group."""
        return {name: adam.state_dict() for name, adam in self.adam.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, adam in self.adam.items():
            adam.load_state_dict(state[name])

    def _adam(self, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
        decay = [p for p in parameters if p.ndim > 1]
        other = [p for p in parameters if p.ndim <= 1]
        parts = [
            {"params": decay, "weight_decay": self.config.weight_decay},
            {"params": other, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(parts, lr=0.0, betas=self.config.betas, eps=self.config.eps, fused=True)

    def _mean_gradients(
        self,
        loss: Tensor,
        parameters: list[nn.Parameter],
        *,
        create_graph: bool = False,
        retain_graph: bool = False,
    ) -> list[Tensor]:
        """The gradient of the global loss: the mean over processes (`backbones/rows.py` says why)."""
        # What was computed in full precision has such a gradient.
        with torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
            )
        return self._mean(gradients)

    def _mean(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean over processes of each tensor, in one transfer; differentiable."""
        if self.processes == 1:
            return list(gradients)
        return [total / self.processes for total in sums_over_processes(*gradients)]

    def _step_on(self, gradients: Sequence[Tensor], group: str) -> None:
        weights = list(self.parameters[group].values())
        self._step(self.adam[group], weights, gradients, self.learning_rate(group))

    def _step(
        self,
        adam: torch.optim.AdamW,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        lr: float,
    ) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        for part in adam.param_groups:
            part["lr"] = lr
        adam.step()
        adam.zero_grad(set_to_none=True)

    def _sibling(self, group: str) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        if group not in self._siblings:
            copies = [nn.Parameter(p.detach().clone()) for p in self.parameters[group].values()]
            self._siblings[group] = (copies, self._adam(copies))
        return self._siblings[group]
