"""The authors' CPU code mixes the images of a batch; the golden files (batch 2) hold that.

Where their two scan directions are added, a missing axis broadcasts over the batch: with y0, y1 the two
directions of image i of B, the sum is ``Σ_j y0[j] + B·y1[i]`` instead of ``y0[i] + y1[i]``. The
hand-written backward of that step passes the gradient on unchanged, and the one of the step before it
(handing the pixels to both directions) adds its gradients in the same mixed way. For one image both
formulas are the same network, which is the one of the paper and ours for any batch size: the result
for an image must not depend on its neighbours.

:func:`authors_scan` replays their steps naively, so that everything else can be compared to the digit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _merge(first: Tensor, second: Tensor) -> Tensor:
    return first.sum(0, keepdim=True) + len(second) * second


class _ToDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone(), x.clone()

    @staticmethod
    def backward(ctx, first, second):
        return _merge(first, second)


class _FromDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, second):
        return _merge(first, second)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def _recurrence(u, delta, A, B, C, D, order):
    """(b, d, L) inputs, B and C (b, n, L): h ← exp(Δ A) h + Δ B u, y = C h + D u, in the given order."""
    h, y = u.new_zeros(*u.shape[:2], A.shape[1]), [None] * u.shape[2]
    for t in order:
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[:, None, :, t] * u[:, :, t, None]
        y[t] = (h * C[:, None, :, t]).sum(-1) + D * u[:, :, t]
    return torch.stack(y, -1)


def naive_scan(self, x: Tensor, mix_batch: bool = False) -> Tensor:
    """What ``SS2D._scan`` computes, step by step; with ``mix_batch`` as the authors' CPU code does."""
    split, merge = (
        (_ToDirections.apply, _FromDirections.apply) if mix_batch else (lambda x: (x, x), torch.add)
    )
    inner, results = x.shape[1], []
    for k, u in enumerate(split(x.flatten(2))):
        dt, B, C = (self.x_proj_weight[k] @ u).split((self.rank, self.d_state, self.d_state), 1)
        delta = F.softplus(self.dt_proj_weight[k] @ dt + self.dt_proj_bias[k][:, None])
        part = slice(k * inner, (k + 1) * inner)
        order = range(u.shape[2]) if k == 0 else reversed(range(u.shape[2]))
        results.append(_recurrence(u, delta, -self.A_log[part].exp(), B, C, self.D[part], order))
    return merge(*results)


def authors_scan(self, x: Tensor) -> Tensor:
    """Stands in for ``SS2D._scan``: the authors' CPU code, mixing the images of a batch."""
    return naive_scan(self, x, mix_batch=True)
