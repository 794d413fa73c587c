"""The published widths of ABMIL, CLAM-SB, DSMIL, TransMIL and RRT-MIL as plain PyTorch modules, to be timed beside ours.

Written from the papers' equations, with the names of our parameters: `tests/benchmarks/test_torch_models.py` copies ours into them and
compares logits. A module takes the instances of one bag, x [N, D], and `loss` is what the method minimises.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, WIDTH, CLASSES = 1024, 512, 2


class ABMIL(nn.Module):
    """Gated attention pooling (Ilse et al. 2018, eq. 8 and 9)."""

    def __init__(self, dim: int = DIM, width: int = WIDTH, attention: int = 384, dropout: float = 0.25) -> None:
        super().__init__()
        self.feature = nn.Linear(dim, width)
        self.attention_v, self.attention_u = nn.Linear(width, attention), nn.Linear(width, attention)
        self.attention_w = nn.Linear(attention, 1)
        self.classifier = nn.Linear(width, CLASSES)
        self.rate = dropout

    def embedded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(instances [N, width], scores [N])."""
        h = F.dropout(F.relu(self.feature(x)), self.rate, self.training)
        gate = torch.tanh(self.attention_v(h)) * torch.sigmoid(self.attention_u(h))
        return h, self.attention_w(F.dropout(gate, self.rate, self.training))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        h, scores = self.embedded(x)
        return self.classifier(torch.softmax(scores.float(), 0).to(h.dtype) @ h)

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy; label: [1]."""
        return F.cross_entropy(self(x)[None].float(), label)


class CLAM(ABMIL):
    """CLAM-SB (Lu et al. 2021): also the smooth SVM of the bag's class over its k most and least attended instances."""

    def __init__(self, dim: int = DIM, width: int = WIDTH, attention: int = 256, sampled: int = 8) -> None:
        super().__init__(dim, width, attention)
        self.instance_classifiers = nn.ModuleList(nn.Linear(width, 2) for _ in range(CLASSES))
        self.sampled = sampled

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        h, scores = self.embedded(x)
        logits = self.classifier(torch.softmax(scores.float(), 0).to(h.dtype) @ h)
        rows = torch.cat([h[scores.topk(self.sampled).indices], h[(-scores).topk(self.sampled).indices]])
        kernels = torch.stack([layer.weight for layer in self.instance_classifiers])[label[0]]
        biases = torch.stack([layer.bias for layer in self.instance_classifiers])[label[0]]
        found = F.linear(rows, kernels, biases).float()
        wrong = 1.0 - F.one_hot((torch.arange(len(rows), device=x.device) < self.sampled).long(), 2)
        svm = torch.logsumexp(found + wrong, 1) - (found * (1.0 - wrong)).sum(1)
        return 0.7 * F.cross_entropy(logits[None].float(), label) + 0.3 * svm.mean()


class DSMIL(nn.Module):
    """Dual streams (Li et al. 2021, eq. 1 to 6) on features as they are."""

    def __init__(self, dim: int = DIM, query: int = 128) -> None:
        super().__init__()
        self.instance_classifier = nn.Linear(dim, CLASSES)
        self.query_1, self.query_2 = nn.Linear(dim, query), nn.Linear(query, query)
        self.classifier = nn.Linear(CLASSES * dim, CLASSES)

    def streams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the bag's stream and of the largest instances."""
        instance_logits = self.instance_classifier(x)
        largest, critical = instance_logits.max(0)

        def query(h: Tensor) -> Tensor:
            return torch.tanh(self.query_2(F.relu(self.query_1(h))))

        scores = query(x[critical]) @ query(x).T / math.sqrt(self.query_2.out_features)
        embedding = torch.softmax(scores.float(), 1).to(x.dtype) @ x  # [C, D]
        return self.classifier(embedding.flatten()), largest

    def forward(self, x: Tensor) -> Tensor:
        return self.streams(x)[0]

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        """The mean of both streams' binary cross-entropies."""
        target = F.one_hot(label, CLASSES)[0].float()
        return sum(0.5 * F.binary_cross_entropy_with_logits(one.float(), target) for one in self.streams(x))  # type: ignore[return-value]


class NystromAttention(nn.Module):
    """Xiong et al. 2021, eq. 13 to 15, with zero rows in front so that the landmarks divide the length; plus the convolution of values."""

    def __init__(self, width: int, heads: int = 8, landmarks: int = 256, iterations: int = 6, taps: int = 33) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.residual = nn.Conv2d(heads, heads, (taps, 1), padding=(taps // 2, 0), groups=heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size, width = x.shape
        x = F.pad(x, (0, 0, -size % self.landmarks, 0))
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)  # [heads, S, d] each
        q = q / math.sqrt(q.shape[-1])
        marks_q, marks_k = (t.unflatten(1, (self.landmarks, -1)).mean(2) for t in (q, k))
        near = torch.softmax((q @ marks_k.mT).float(), -1).to(v.dtype)
        middle = torch.softmax((marks_q @ marks_k.mT).float(), -1)
        far = torch.softmax((marks_q @ k.mT).float(), -1).to(v.dtype)
        mixed = near @ (self._inverse(middle).to(v.dtype) @ (far @ v)) + self.residual(v[None])[0]
        return self.output(mixed.permute(1, 0, 2).reshape(len(x), width))[-size:]

    def _inverse(self, a: Tensor) -> Tensor:
        one = torch.eye(a.shape[-1], device=a.device)
        z = a.mT / (a.sum(-1).max() * a.sum(-2).max())
        with torch.autocast(a.device.type, enabled=False):
            for _ in range(self.iterations):
                az = a @ z
                z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
        return z


class TransMIL(nn.Module):
    """Shao et al. 2021: a square of tokens and a class token through two Nystrom layers with PPEG between them."""

    def __init__(self, dim: int = DIM, width: int = WIDTH, landmarks: int = 256) -> None:
        super().__init__()
        self.feature = nn.Linear(dim, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.layers = nn.ModuleList(NystromAttention(width, landmarks=landmarks) for _ in range(2))
        self.positions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.feature(x))
        side = math.ceil(math.sqrt(len(h)))
        h = torch.cat([self.class_token[0].to(h.dtype), h, h[: side**2 - len(h)]])
        h = h + F.dropout(self.layers[0](self.norms[0](h)), 0.1, self.training)
        image = h[1:].T.reshape(1, -1, side, side)
        image = image + sum(position(image) for position in self.positions)
        h = torch.cat([h[:1], image[0].flatten(1).T])
        h = h + F.dropout(self.layers[1](self.norms[1](h)), 0.1, self.training)
        return self.classifier(self.norms[2](h[0]))

    loss = ABMIL.loss


class RRT(nn.Module):
    """Tang et al. 2024: attention inside and between 8 x 8 square regions of the bag, then attention pooling."""

    def __init__(self, dim: int = DIM, width: int = WIDTH, heads: int = 8, regions: int = 8, taps: int = 15) -> None:
        super().__init__()
        self.heads, self.regions = heads, regions
        self.feature = nn.Linear(dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.epeg = nn.Conv2d(heads, heads, (taps, 1), padding=(taps // 2, 0), groups=heads)
        self.phi = nn.Parameter(torch.randn(width, 1))
        self.attention_v, self.attention_w = nn.Linear(width, 128, bias=False), nn.Linear(128, 1, bias=False)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = F.dropout(F.relu(self.feature(x)), 0.25, self.training)
        side = math.ceil(math.ceil(math.sqrt(len(x))) / self.regions) * self.regions
        y = features + self._within(self.norms[0](features), side)
        y = y + self._between(self.norms[1](y), side)
        y = self.norms[2](y + features)
        scores = self.attention_w(torch.tanh(self.attention_v(y)))[:, 0]
        return self.classifier(torch.softmax(scores.float(), 0).to(y.dtype) @ y)

    loss = ABMIL.loss

    def _cut(self, y: Tensor, side: int) -> Tensor:
        """[N, D] -> [regions, slots, D], zeros behind the last instance."""
        y = F.pad(y, (0, 0, 0, side**2 - len(y))).view(
            self.regions, side // self.regions, self.regions, -1, y.shape[-1]
        )
        return y.transpose(1, 2).flatten(0, 1).flatten(1, 2)

    def _laid_out(self, y: Tensor, side: int, size: int) -> Tensor:
        y = y.view(self.regions, self.regions, side // self.regions, side // self.regions, -1)
        return y.transpose(1, 2).reshape(side**2, -1)[:size]

    def _attend(self, y: Tensor, number: int, epeg: bool) -> Tensor:
        """y [G, P, D]."""
        q, k, v = self.qkv[number](y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q / math.sqrt(q.shape[-1])) @ k.mT  # [G, heads, P, P]
        logits = logits + self.epeg(logits) if epeg else logits
        return self.projections[number]((torch.softmax(logits.float(), -1).to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def _within(self, y: Tensor, side: int) -> Tensor:
        attended = self._laid_out(self._attend(self._cut(y, side), 0, epeg=True), side, len(y))
        return F.dropout(attended, 0.1, self.training)

    def _between(self, y: Tensor, side: int) -> Tensor:
        tokens = self._cut(y, side)
        logits = (tokens @ self.phi.to(tokens.dtype)).float()  # [G, P, 1]
        representatives = (torch.softmax(logits, 1).to(y.dtype).mT @ tokens).transpose(0, 1)  # [1, G, D]
        gathered = F.dropout(self._attend(representatives, 1, epeg=False), 0.1, self.training)[0]
        low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
        share = torch.softmax(logits, -1) * (logits - low) / (high - low + 1e-8)
        return self._laid_out(share.to(y.dtype) * gathered[:, None], side, len(y))


MODELS = {"abmil": ABMIL, "clam_sb": CLAM, "dsmil": DSMIL, "transmil": TransMIL, "rrt": RRT}
