"""The systems of other papers line by line: all n workers stacked in `[n, d]`, no collectives, no bits, no cleverness.

The executable specifications of `cser_ray.optimizers.systems`, beside `cser_ray.paper`. `gradient(x, t)` is as there; `lr(t)`
is the learning rate eta_t of step t = 1, 2, ...; `decay` is lambda. A compressor is a function C(v, t) applied to v
`[n, d]`, or to the server's `[1, d]`. Each algorithm yields the models x `[n, d]` after every step, and then its residuals.

What came from where is said by the optimizers.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cser_ray.paper import Compress, Gradient

Rate = Callable[[int], float]
Trajectory = Iterator[tuple[Tensor, ...]]


def sign(v: Tensor) -> Tensor:
    """+1 or -1, and +1 at zero."""
    return torch.where(v >= 0, 1.0, -1.0).to(v)


def scaled_sign(v: Tensor, blocks: Sequence[slice]) -> Tensor:
    """C(v_b) = ||v_b||_1 / d_b sign(v_b) for each block b of coordinates."""
    compressed = torch.empty_like(v)
    for b in blocks:
        compressed[:, b] = v[:, b].abs().mean(1, keepdim=True) * sign(v[:, b])
    return compressed


def top_k(v: Tensor, k: int) -> Tensor:
    """The k coordinates of largest magnitude of each row."""
    compressed = torch.zeros_like(v)
    for row, kept in zip(v, compressed, strict=True):
        largest = row.abs().argsort(descending=True)[:k]
        kept[largest] = row[largest]
    return compressed


def quantised(v: Tensor, levels: int, bucket: int, uniform: Tensor) -> Tensor:
    """QSGD of each bucket: ||v||_2 sign(v_j) xi_j / s, xi_j = floor(s |v_j| / ||v||_2 + u_j), u_j uniform in [0, 1)."""
    parts = zip(torch.split(v, bucket, 1), torch.split(uniform, bucket, 1), strict=True)
    rounded = []
    for part, u in parts:
        norm = part.norm(dim=1, keepdim=True)
        xi = torch.floor(levels * part.abs() / torch.where(norm > 0, norm, 1.0) + u)
        rounded.append(norm * torch.sign(part) * xi / levels)
    return torch.cat(rounded, 1)


def adacomp_choice(g_plus: Tensor, h: Tensor, layers: Sequence[slice], size: int) -> Tensor:
    """What AdaComp sends of G `[n, d]`, given H: per bin of a layer, scale * sign(G_j) where |H_j| >= max |G|."""
    sent = torch.zeros_like(g_plus)
    for worker in range(len(g_plus)):
        for layer in layers:
            bins = [slice(a, min(a + size, layer.stop)) for a in range(layer.start, layer.stop, size)]
            maxima = [g_plus[worker, b].abs().max() for b in bins]
            scale = torch.stack(maxima).mean()
            for b, largest in zip(bins, maxima, strict=True):
                for j in range(b.start, b.stop):
                    if largest > 0 and h[worker, j].abs() >= largest:
                        sent[worker, j] = scale * sign(g_plus[worker, j])
    return sent


def dist_ef_sgd(
    x: Tensor, gradient: Gradient, worker: Compress, server: Compress, lr: Rate, momentum: float, decay: float
) -> Trajectory:
    """dist-EF-SGDM of Zheng et al. (with momentum 0 dist-EF-SGD): two-way, errors in gradient units, on workers and server.

    Yields x, the workers' errors e `[n, d]` and the server's `[1, d]`, both before the next step's rescaling.
    """
    e, e_server = torch.zeros_like(x), torch.zeros_like(x[:1])
    m, w = torch.zeros_like(x), torch.zeros_like(x)
    before = 0.0  # eta_0: there is no error yet
    for t in itertools.count(1):
        eta = lr(t)
        g = gradient(x, t)
        m = momentum * m + g
        p = momentum * m + g + before / eta * e
        sent = worker(p, t)
        e = p - sent
        p_server = sent.mean(0, keepdim=True) + before / eta * e_server
        delta = server(p_server, t)
        e_server = p_server - delta
        w = momentum * w + decay * x
        x = x - eta * (delta + momentum * w + decay * x)
        before = eta
        yield x, e, e_server


def signum(x: Tensor, gradient: Gradient, lr: Rate, momentum: float, decay: float) -> Trajectory:
    """Signum of Bernstein et al. with majority vote and decoupled weight decay; a tie is +1."""
    m = torch.zeros_like(x)
    for t in itertools.count(1):
        m = momentum * m + (1 - momentum) * gradient(x, t)
        vote = sign(sign(m).sum(0))
        x = x - lr(t) * (vote + decay * x)
        yield (x,)


def mem_sgd(x: Tensor, gradient: Gradient, compress: Compress, lr: Rate, momentum: float, decay: float) -> Trajectory:
    """MEM-SGD of Stich et al., the memory in parameter units, around a Nesterov step. Yields x and the memory."""
    memory, m = torch.zeros_like(x), torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t) + decay * x
        m = momentum * m + g
        v = memory + lr(t) * (momentum * m + g)
        sent = compress(v, t)
        x = x - sent.mean(0)
        memory = v - sent
        yield x, memory


def _after(x: Tensor, m: Tensor, q: Tensor, eta: float, momentum: float, decay: float) -> tuple[Tensor, Tensor]:
    """A Nesterov step of all workers on the mean of what they sent, q `[n, d]`: the new x and m."""
    g = q.mean(0) + decay * x
    m = momentum * m + g
    return x - eta * (momentum * m + g), m


def qsgd(x: Tensor, gradient: Gradient, quantise: Compress, lr: Rate, momentum: float, decay: float) -> Trajectory:
    """QSGD of Alistarh et al.: a step on the mean of quantised gradients."""
    m = torch.zeros_like(x)
    for t in itertools.count(1):
        x, m = _after(x, m, quantise(gradient(x, t), t), lr(t), momentum, decay)
        yield (x,)


def ecq_sgd(
    x: Tensor,
    gradient: Gradient,
    quantise: Compress,
    lr: Rate,
    momentum: float,
    decay: float,
    alpha: float,
    beta: float,
) -> Trajectory:
    """ECQ-SGD of Wu et al.: QSGD of gradients with a share alpha of fading errors h. Yields x and h."""
    h, m = torch.zeros_like(x), torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t)
        q = quantise(g + alpha * h, t)
        h = beta * h + (g - q)
        x, m = _after(x, m, q, lr(t), momentum, decay)
        yield x, h


def adacomp(
    x: Tensor, gradient: Gradient, layers: Sequence[slice], size: int, lr: Rate, momentum: float, decay: float
) -> Trajectory:
    """AdaComp of Chen et al. with bins of `size`. Yields x and the residues."""
    residue, m = torch.zeros_like(x), torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t)
        g_plus = residue + g
        sent = adacomp_choice(g_plus, g_plus + g, layers, size)
        residue = g_plus - sent
        x, m = _after(x, m, sent, lr(t), momentum, decay)
        yield x, residue


def dgc(
    x: Tensor, gradient: Gradient, kept: Callable[[int], int], lr: Rate, momentum: float, decay: float
) -> Trajectory:
    """Deep gradient compression; each worker sends `kept(t)` coordinates in step t. Residual: v, a gradient.

    u is momentum as the released code has it, u = beta (u + g), which is beta times the usual one.
    """
    u, v = torch.zeros_like(x), torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t) + decay * x
        u = momentum * (u + g)  # momentum correction
        v = v + u + g
        sent = top_k(v, kept(t))
        u = torch.where(sent != 0, 0.0, u)  # momentum factor masking
        v = v - sent
        x = x - lr(t) * sent.mean(0)
        yield x, v


def gram_schmidt(p: Tensor) -> Tensor:
    """The columns of p `[rows, r]` made orthonormal, one after the other."""
    p = p.clone()
    for i in range(p.shape[1]):
        for j in range(i):
            p[:, i] -= (p[:, j] @ p[:, i]) * p[:, j]
        p[:, i] /= p[:, i].norm()
    return p


def powersgd(
    x: Tensor,
    gradient: Gradient,
    shapes: Sequence[torch.Size],
    first: Sequence[Tensor | None],
    lr: Rate,
    momentum: float,
    decay: float,
) -> Trajectory:
    """PowerSGD on parameters of these shapes, one after the other in x, each with its first Q `[columns, r]`.

    Without a Q, a parameter is sent as it is. Residual: e, a gradient.
    """
    queries = list(first)
    e, m = torch.zeros_like(x), torch.zeros_like(x[0])
    for t in itertools.count(1):
        left, step = [], []
        parts = (gradient(x, t) + e).split_with_sizes([shape.numel() for shape in shapes], 1)
        for k, part in enumerate(parts):
            q = queries[k]
            if q is None:
                mean = part.mean(0)
                left.append(torch.zeros_like(part))
            else:
                matrices = part.view(len(x), shapes[k][0], -1)
                p = gram_schmidt((matrices @ q).mean(0))
                queries[k] = q = (matrices.mT @ p).mean(0)
                mean = (p @ q.T).flatten()
                left.append(part - mean)
            step.append(mean)
        e = torch.cat(left, 1)
        g = torch.cat(step) + decay * x[0]
        m = momentum * m + g
        x = x - lr(t) * (g + momentum * m)
        yield x, e


def metropolis(neighbours: Sequence[Sequence[int]]) -> Tensor:
    """W_ij = 1 / (1 + max(deg i, deg j)) for neighbours, and W_ii the rest of the row: symmetric, doubly stochastic."""
    n = len(neighbours)
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in neighbours[i]:
            w[i, j] = 1 / (1 + max(len(neighbours[i]), len(neighbours[j])))
        w[i, i] = 1 - w[i].sum()
    return w


def d_psgd(x: Tensor, gradient: Gradient, w: Tensor, lr: Rate, momentum: float, decay: float) -> Trajectory:
    """D-PSGD with the mixing matrix W `[n, n]`. Nothing is left over."""
    m = torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t) + decay * x  # at the model before it is averaged
        m = momentum * m + g
        half = w @ x
        x = half - lr(t) * (momentum * m + g)
        yield (x,)


def choco_sgd(
    x: Tensor, gradient: Gradient, c: Compress, w: Tensor, gamma: float, lr: Rate, momentum: float, decay: float
) -> Trajectory:
    """CHOCO-SGD with the mixing matrix W and the consensus rate gamma. Residual: x_hat, what others know of x."""
    m, x_hat = torch.zeros_like(x), x
    for t in itertools.count(1):
        g = gradient(x, t) + decay * x
        m = momentum * m + g
        half = x - lr(t) * (momentum * m + g)
        q = c(half - x_hat, t)
        x_hat = x_hat + q
        x = half + gamma * (w @ x_hat - x_hat)
        yield x, x_hat


def deep_squeeze(
    x: Tensor, gradient: Gradient, c: Compress, w: Tensor, gamma: float, lr: Rate, momentum: float, decay: float
) -> Trajectory:
    """DeepSqueeze with the mixing matrix W and the consensus rate gamma. Residual: e, what messages have dropped."""
    m, e = torch.zeros_like(x), torch.zeros_like(x)
    for t in itertools.count(1):
        g = gradient(x, t) + decay * x
        m = momentum * m + g
        half = x - lr(t) * (momentum * m + g)
        v = half + e
        sent = c(v, t)
        e = v - sent
        x = half + gamma * (w @ sent - sent)
        yield x, e
