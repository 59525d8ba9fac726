#!/usr/bin/env python3
"""Time the backends of the selective scan against each other and against what the machine allows."""

import argparse
from contextlib import suppress
from itertools import product

import torch
from torch import Tensor

from mmmobilemamba import markdown
from mmmobilemamba.benchmark.timing import Timing, stopwatch
from mmmobilemamba.engine import user_errors_reported
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.load import check_device, device_name
from mmmobilemamba.malloc import keep_freed_memory
from mmmobilemamba.ops import (
    available_backends,
    bidirectional_selective_scan,
    choose_backend,
    selective_scan,
)

EPILOG = """
The floor of a forward pass is the time to read the inputs and write the output at the rate at which this
machine copies the same tensors, plus one torch.exp per state and, for softplus, one per step size, all
measured in the same run. Runs of all backends and of the floor are interleaved, so that a busy moment
slows all of them, and each follows an untimed one of its own; the table gives medians and, as +-, half the
distance between the quartiles.

Examples:
  tools/benchmark_scan.py --threads 2
  tools/benchmark_scan.py --backends native torch --length 1024 4200 16384 --layout first last
  tools/benchmark_scan.py --directions 2 --dtype bfloat16
"""
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--backends', nargs='+', help='default: every backend that this machine can run')
    parser.add_argument('--batch', nargs='+', type=int, default=[1])
    parser.add_argument('--channels', nargs='+', type=int, default=[640], help='D (default: 640)')
    parser.add_argument('--states', nargs='+', type=int, default=[1], help='N per channel (default: 1)')
    parser.add_argument('--length', nargs='+', type=int, default=[4200], help='L (default: 4200)')
    parser.add_argument(
        '--layout',
        nargs='+',
        choices=['first', 'last'],
        default=['first'],
        help='what is contiguous: positions (channels first, the default) or channels (channels last)',
    )
    parser.add_argument('--directions', nargs='+', type=int, choices=[1, 2], default=[1])
    parser.add_argument('--dtype', nargs='+', choices=list(DTYPES), default=['float32'])
    parser.add_argument('--threads', type=int, help='of torch (default: as torch starts)')
    parser.add_argument('--device', default='cpu', help="default: 'cpu'")
    parser.add_argument('--repeats', type=int, default=15, help='timed runs of each backend (default: 15)')
    parser.add_argument(
        '--reference-repeats', type=int, default=2, help='of the slow backend reference (default: 2)'
    )
    args = parser.parse_args()
    for name in ('batch', 'channels', 'states', 'length'):
        if min(getattr(args, name)) < 1:
            parser.error(f'--{name}: allowed are integers from 1 up')
    if min(args.repeats, args.reference_repeats) < 1 or (args.threads or 1) < 1:
        parser.error('--repeats, --reference-repeats, --threads: allowed are integers from 1 up')
    return args


def make_inputs(
    batch: int, channels: int, states: int, length: int, directions: int, layout: str, like: dict
) -> list[Tensor]:
    """u, delta, A, B, C, D and delta_bias of one case."""

    def positions(*shape: int) -> Tensor:
        if layout == 'first':
            return torch.randn(*shape, **like)
        return torch.randn(*shape[:-2], shape[-1], shape[-2], **like).transpose(-1, -2)

    both = (2,) if directions == 2 else ()
    rows = directions * channels
    parameters = dict(like, dtype=torch.float32)
    return [
        positions(batch, channels, length),
        positions(batch, *both, channels, length),
        -torch.rand(rows, states, **parameters),
        *(torch.randn(batch, *both, states, length, **like) for _ in range(2)),
        *(torch.rand(rows, **parameters) for _ in range(2)),
    ]


def time_backend(
    backend: str, inputs: list[Tensor], directions: int, device: torch.device
) -> dict[str, float]:
    scan = bidirectional_selective_scan if directions == 2 else selective_scan
    seconds = stopwatch(device)
    plain = seconds(lambda: scan(*inputs, delta_softplus=True, backend=backend))
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = []
    # The forward pass that remembers what the backward pass needs is timed on its own.
    recording = seconds(lambda: result.append(scan(*leaves, delta_softplus=True, backend=backend)))
    backward = seconds(lambda: torch.autograd.grad(result[0], leaves, inputs[0]))
    return dict(forward=plain, backward=backward, both=recording + backward)


def time_floor(inputs: list[Tensor], device: torch.device) -> dict[str, float]:
    seconds = stopwatch(device)
    u, delta, A, B, C = inputs[:5]
    pairs = [(x, torch.empty_like(x)) for x in (u, delta, B, C)]
    for x, target in pairs:
        target.copy_(x)
    copying = seconds(lambda: [target.copy_(x) for x, target in pairs])
    # A copy reads and writes every input; the scan reads them and writes one output like u.
    copied = 2 * sum(x.nbytes for x, _ in pairs)
    moved = sum(x.nbytes for x, _ in pairs) + u.nbytes
    steps = torch.randn(delta.shape, device=device)
    # Zeros touch the memory first, so that what is timed is the arithmetic.
    out = torch.zeros_like(steps)
    exponentials = seconds(lambda: torch.exp(steps, out=out)) * (1 + A.shape[1])
    return dict(forward=copying * moved / copied + exponentials)


def measure(
    args: argparse.Namespace, backends: list[str], inputs: list[Tensor], directions: int
) -> dict[str, dict[str, Timing]]:
    """Times of the floor and of every backend by kind; the first round warms up."""
    device = inputs[0].device
    times: dict[str, dict[str, list[float]]] = {}
    for i in range(args.repeats + 1):
        for name in ('floor', *backends):
            if name == 'reference' and i > args.reference_repeats:
                continue
            # The first of two runs brings back into the caches what the run of another has displaced.
            for _ in range(2):
                if name == 'floor':
                    run = time_floor(inputs, device)
                else:
                    run = time_backend(name, inputs, directions, device)
            if i > 0:
                for kind, value in run.items():
                    times.setdefault(name, {}).setdefault(kind, []).append(value)
    return {name: {kind: Timing.of(v) for kind, v in kinds.items()} for name, kinds in times.items()}


def table(times: dict[str, dict[str, Timing]]) -> str:
    """The medians in milliseconds and their ratios as Markdown."""
    medians = {name: {kind: t.median for kind, t in kinds.items()} for name, kinds in times.items()}
    against = [name for name in ('reference', 'torch') if name in medians]
    kinds = ('forward', 'backward', 'both')
    heads = ['backend', *(f'{k} [ms]' for k in ('forward', 'backward', 'forward + backward'))]
    heads += ['backward / forward', 'forward / floor']
    heads += [f'{kind}: times as fast as {name}' for name in against for kind in ('forward', 'both')]
    rows = []
    for name, median in medians.items():
        cells = [name, *(milliseconds(times[name].get(kind)) for kind in kinds)]
        cells.append(f'{median["backward"] / median["forward"]:.2f}' if 'backward' in median else '')
        cells.append(f'{median["forward"] / medians["floor"]["forward"]:.2f}')
        for other in against:
            for kind in ('forward', 'both'):
                ratio = medians[other][kind] / median[kind] if kind in median else None
                cells.append('' if ratio is None else f'{ratio:.1f}')
        rows.append(cells)
    return markdown.table(heads, rows)


def milliseconds(time: Timing | None) -> str:
    return '' if time is None else f'{1e3 * time.median:.2f} +- {500 * (time.upper - time.lower):.2f}'


def backends_for(args: argparse.Namespace, device: torch.device, states: int) -> list[str]:
    """Those that were asked for, else those that can run it."""
    if args.backends:
        return [choose_backend(name, device.type, torch.float32, states) for name in args.backends]
    fitting = []
    for name in available_backends():
        with suppress(UserError):
            fitting.append(choose_backend(name, device.type, torch.float32, states))
    return fitting


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with user_errors_reported():
        device = check_device(args.device)
        if device.type == 'cpu':
            keep_freed_memory()  # as the tools that train and test
        backends = {states: backends_for(args, device, states) for states in args.states}
        print(f'torch {torch.__version__}, {device_name(device)}')
        for batch, channels, states, length, directions, layout, dtype in product(
            args.batch,
            args.channels,
            args.states,
            args.length,
            args.directions,
            args.layout,
            args.dtype,
        ):
            torch.manual_seed(0)
            like = dict(dtype=DTYPES[dtype], device=device)
            inputs = make_inputs(batch, channels, states, length, directions, layout, like)
            print(
                f'\nB={batch}, D={channels}, N={states}, L={length}, directions: {directions}, '
                f'channels {layout}, {dtype}\n'
            )
            print(table(measure(args, backends[states], inputs, directions)), flush=True)


if __name__ == '__main__':
    main()
