"""SGRAF caption by caption, as the paper writes it: what the tiled version is held against, and timed
against.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones.sgraf import SgrafBackbone, SimilarityEncoder


def similarity(net: SgrafBackbone, images: Tensor, texts: Tensor) -> Tensor:
    """Embeddings [M, 1 + R, D], [N, 1 + L, D] -> [M, N]."""
    return net.sim_enc.score(vectors(net, images, texts))


def vectors(net: SgrafBackbone, images: Tensor, texts: Tensor) -> Tensor:
    """[M, N, S]. Leaves running statistics alone."""
    return torch.stack([_one_caption(net.sim_enc, images, text) for text in texts], 1)


def _one_caption(encoder: SimilarityEncoder, images: Tensor, text: Tensor) -> Tensor:
    words = text[1:][text[1:].any(-1)]
    words = words.expand(len(images), -1, -1)
    regions = images[:, 1:]
    match = _unit(F.leaky_relu(regions @ words.mT, 0.1)).mT  # [M, words, regions]: normed over the words
    context = _unit((9.0 * match).softmax(-1) @ regions)
    local = _unit(encoder.sim_tranloc_w((context - words) ** 2))
    overall = _unit(encoder.sim_tranglo_w((images[:, 0] - text[0]) ** 2))
    nodes = torch.cat([overall[:, None], local], 1)
    if encoder.filters:
        saf = encoder.SAF_module
        gate = saf.attn_sim_w(nodes).mT
        mean, variance = (x.clone() for x in (saf.bn.running_mean, saf.bn.running_var) if x is not None)
        weights = F.batch_norm(gate, mean, variance, saf.bn.weight, saf.bn.bias, encoder.training).sigmoid()
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
        return _unit((weights @ nodes).squeeze(1))
    steps: Any = encoder.SGR_module
    for step in steps:
        edges = (step.graph_query_w(nodes) @ step.graph_key_w(nodes).mT).softmax(-1)
        nodes = step.sim_graph_w(edges @ nodes).relu()
    return nodes[:, 0]


def _unit(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(-1, keepdim=True).sqrt() + 1e-8)
