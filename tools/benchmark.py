#!/usr/bin/env python3
"""Cost of backbones, detectors and segmentors, side by side.

Parameters, FLOPs with the selective scan and without, latency, images per second and peak memory, over lists
of sizes, batch sizes and data types. All models are timed in turns, a matrix product among them, so that a
busy moment slows all of them, and each is told as a share of what the machine can do.
"""

import argparse
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from mmmobilemamba.arch import ARCHS
from mmmobilemamba.benchmark import plot, profiling, results
from mmmobilemamba.benchmark.candidates import Candidate, Workload
from mmmobilemamba.benchmark.measure import Settings, measure
from mmmobilemamba.datasets.layout import duplicates, shorten
from mmmobilemamba.engine import user_errors_reported
from mmmobilemamba.engine.config import check_writable
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.load import check_device, device_name
from mmmobilemamba.malloc import keep_freed_memory

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
SUFFIXES = ('.md', '.csv', '.json', '.png', '.pdf', '.svg')
SIZE = r'(\d+)(?:[x×](\d+))?'
EPILOG = f"""
A model is one of
  b1                           a variant of MobileMamba ({', '.join(ARCHS)}), random weights
  b1,weights.pth               the same with weights
  config.py                    a detector or segmentor, up to the outputs of its heads (without decoding of
  config.py,checkpoint.pth     boxes or resizing of maps; the proposals of a two-stage detector are made)
  'mmdet.NAME(argument=…)'     any backbone of the registries of mmdet, mmseg and mmpretrain
  timm:NAME                    a model of timm without its classifier
each of them with +deploy behind it: folded for inference, MobileMamba by its switch_to_deploy(), others by
their own or mmcv's fuse_conv_bn(). +compile, alone or after that, runs inference through torch.compile, with
the weights as constants; compiling takes up to a minute for each size. 'TITLE=model' gives a shorter name.

What the numbers mean
  FLOPs     multiply-adds of convolutions and matrix products per image. The scan, 9·L·D·N + L·D for each
            direction, is counted apart; batch norms, one per element, are in the CSV and JSON alone.
            Publications on MobileMamba add up all three.
  latency   median and quartiles of the rounds, for a whole batch; each run follows an untimed one of its own.
  share     FLOPs over latency, over the rate of a square matrix product of the same data type, measured in
            the same rounds.
  memory    GPU: what PyTorch allocates, weights included. CPU (Linux): by how much the resident memory of a
            fresh process grows from before the model is built to the peak of its second forward pass,
            libraries left out.
  top-1     published by the authors (ImageNet-1K, plain training), or given by --top1; not measured.

Examples
  tools/benchmark.py b1 b1+deploy --sizes 224 512 800x1333 --threads 2
  tools/benchmark.py b1+deploy 'MobileNetV2=mmdet.MobileNetV2(out_indices=(2,4,6))+deploy' \\
      timm:repvit_m1_1+deploy --dtypes float32 bfloat16 --out table.md table.json
  tools/benchmark.py t2 t4 s6 b1 b2 b4 --deploy --sizes published --plot accuracy --out accuracy.png
  tools/benchmark.py b1 --sizes 512 --train                 forward and backward beside forward
  tools/benchmark.py b1+deploy --sizes 512 --profile        time by kind of operation
  tools/benchmark.py configs/det/retinanet_mobilemamba.py --sizes 800x1280
  tools/benchmark.py --read one.json two.json --out both.png
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_what(parser)
    add_how(parser)
    args = parser.parse_args()
    if bool(args.models) == bool(args.read):
        parser.error('name models to measure, or results to --read')
    if args.read and (args.deploy or args.train or args.profile):
        parser.error('--deploy, --train and --profile are for measuring, not for results to --read')
    least = dict(repeats=1, warmup=0, threads=1, matmul_size=1)
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f'--{name.replace("_", "-")} must be at least {low}, not {value}')
    if min(args.batch_sizes) < 1:
        parser.error('--batch-sizes must be at least 1')
    return args


def add_what(parser: argparse.ArgumentParser) -> None:
    """Arguments on what is measured and where it goes."""
    parser.add_argument('models', nargs='*', metavar='MODEL', help='see below')
    parser.add_argument(
        '--sizes',
        nargs='+',
        default=['512'],
        metavar='SIZE',
        help="side of square images in pixels (224), height x width (800x1333), or 'published': what each "
        'variant of MobileMamba is published for (default: 512)',
    )
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1], metavar='N', help='default: 1')
    parser.add_argument('--dtypes', nargs='+', choices=list(DTYPES), default=['float32'])
    parser.add_argument('--deploy', action='store_true', help='fold every model, as +deploy does for one')
    parser.add_argument(
        '--train',
        action='store_true',
        help='time forward and backward of a training step beside the forward pass: backbones that are not '
        'folded; autocast for bfloat16 and float16',
    )
    parser.add_argument(
        '--profile', action='store_true', help='tell where the time goes, with torch.profiler'
    )
    parser.add_argument('--no-memory', action='store_true', help='do not measure peak memory')
    parser.add_argument(
        '--top1',
        nargs='+',
        default=[],
        metavar='MODEL@SIZE=%',
        help='published accuracy of other models by their names in the table, for --plot accuracy: '
        'MobileNetV2@224=71.8',
    )
    parser.add_argument(
        '--plot',
        choices=plot.KINDS,
        default='size',
        help='what pictures show: time and memory against size (default), or published accuracy against time',
    )
    parser.add_argument(
        '--out',
        nargs='+',
        default=[],
        type=Path,
        metavar='FILE',
        help=f'files to write: {", ".join(SUFFIXES)}',
    )
    parser.add_argument(
        '--read',
        nargs='+',
        type=Path,
        metavar='JSON',
        help='take results of earlier runs instead of measuring',
    )


def add_how(parser: argparse.ArgumentParser) -> None:
    """Arguments on how it is measured."""
    parser.add_argument('--channels-last', action='store_true', help='weights and images in that layout')
    parser.add_argument('--device', help='cpu, cuda:0, … (default: the first GPU, else the CPU)')
    parser.add_argument('--threads', type=int, help='of the CPU (default: as torch starts)')
    parser.add_argument('--repeats', type=int, default=20, help='rounds that count (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=3, help='rounds before them (default: %(default)s)')
    parser.add_argument(
        '--matmul-size',
        type=int,
        help='side of the matrices that tell the rate of the machine (default: 2048, on a GPU 8192; less '
        'where that would take more than a quarter of a second)',
    )


def main() -> None:
    args = parse_args()
    with user_errors_reported():
        check_outputs(args.out)
        top1 = parse_top1(args.top1)
        if args.read:
            found, environment = read(args.read)
            check_top1(top1, [(r.model, r.height, r.width) for r in found])
        else:
            cases = make_cases(args)
            check_top1(top1, [(w.candidate.name, w.height, w.width) for case in cases for w in case])
            found, environment = run(args, cases)
        found = [
            replace(r, published_top1=top1.get((r.model, r.height, r.width), r.published_top1)) for r in found
        ]
        write(args, found, environment)


def check_outputs(files: Iterable[Path]) -> None:
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(f'--out {file}: the name must end in one of {", ".join(SUFFIXES)}.')
        check_writable(file.absolute().parent, '--out')


def parse_top1(texts: Iterable[str]) -> dict[tuple[str, int, int], float]:
    """Accuracies in per cent by name of the model, height and width."""
    top1 = {}
    for text in texts:
        match = re.fullmatch(rf'(.+)@{SIZE}=(\d+(?:\.\d+)?)', text)
        if match is None:
            raise UserError(f'--top1 {text!r} must be MODEL@SIZE=%, for example MobileNetV2@224=71.8.')
        name, height, width, value = match.groups()
        top1[name, int(height), int(width or height)] = float(value)
    return top1


def check_top1(top1: Iterable[tuple[str, int, int]], measured: Iterable[tuple[str, int, int]]) -> None:
    rows = dict.fromkeys(f'{name}@{height}x{width}' for name, height, width in measured)
    for name, height, width in top1:
        row = f'{name}@{height}x{width}'
        if row not in rows:
            raise UserError(f'--top1: the table has no {row}, but {", ".join(rows)}.')


def read(files: Iterable[Path]) -> tuple[list[results.Result], dict[str, Any]]:
    parts = [results.read_json(file) for file in files]
    found = [result for part, _ in parts for result in part]
    if repeated := duplicates((r.model, r.height, r.width, r.batch, r.dtype) for r in found):
        model, height, width, batch, dtype = repeated[0]
        raise UserError(
            f'--read: more than one result is of {model}, {height}x{width}, batch {batch}, {dtype}. Measure '
            'models that are to be told apart under titles of their own (TITLE=MODEL).'
        )
    first, *others = (environment for _, environment in parts)
    return found, {
        key: value if all(other.get(key) == value for other in others) else 'various'
        for key, value in first.items()
    }


def run(args: argparse.Namespace, cases: list[list[Workload]]) -> tuple[list[results.Result], dict[str, Any]]:
    device = check_device(args.device)
    if device.type == 'cpu' and 'float16' in args.dtypes:
        raise UserError('--dtypes float16 is for GPUs. On a CPU choose float32 or bfloat16.')
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == 'cpu':
        keep_freed_memory()  # as the tools that train and test
    # Convolutions use it by default; the product they are measured against should too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    settings = Settings(
        device,
        args.repeats,
        args.warmup,
        args.matmul_size,
        args.train,
        not args.no_memory,
    )
    if args.plot == 'accuracy' and not args.top1 and args.out:
        check_accuracies(cases)
    found = measure(cases, settings, show)
    if args.profile:
        report_profiles(cases, settings)
    return found, describe(args, device)


def check_accuracies(cases: Iterable[Sequence[Workload]]) -> None:
    if not any(w.candidate.published_top1(w.height, w.width) for case in cases for w in case):
        raise UserError(plot.NO_ACCURACY)


def make_cases(args: argparse.Namespace) -> list[list[Workload]]:
    """What is timed together: all models, at one size, batch size and data type."""
    candidates = list(dict.fromkeys(Candidate.parse(text, args.deploy) for text in args.models))
    if repeated := duplicates(candidate.name for candidate in candidates):
        raise UserError(
            f'More than one model would be called {shorten(repeated)} in the tables. Give each a title, '
            'TITLE=MODEL.'
        )
    if args.profile and (compiled := [c.name for c in candidates if c.compiled]):
        raise UserError(
            '--profile shows the operations of PyTorch, which torch.compile replaces. Leave out '
            f'{shorten(compiled)}, or +compile.'
        )
    return [
        [
            Workload(candidate, *parse_size(size, candidate), batch, DTYPES[dtype], args.channels_last)
            for candidate in candidates
        ]
        for dtype in args.dtypes
        for batch in args.batch_sizes
        for size in args.sizes
    ]


def parse_size(text: str, candidate: Candidate) -> tuple[int, int]:
    """Height and width in pixels."""
    if text == 'published':
        side = candidate.published_size
        if side is None:
            raise UserError(
                f'--sizes published: only variants of MobileMamba have one, not {candidate.name}.'
            )
        return side, side
    match = re.fullmatch(SIZE, text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(height, width) < 1:
        raise UserError(
            f'--sizes {text!r} must be a side in pixels (512), height x width (800x1333) or published.'
        )
    return height, width


def describe(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    return dict(
        device=device_name(device),
        processor=processor_name(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        repeats=args.repeats,
        channels_last=args.channels_last,
    )


def processor_name() -> str:
    info = Path('/proc/cpuinfo')
    names = re.findall(r'^model name\s*: (.*)$', info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def report_profiles(cases: Iterable[Sequence[Workload]], settings: Settings) -> None:
    for workload in (w for case in cases for w in case):
        module, images = workload.prepare(workload.candidate.build(), settings.device)
        found = profiling.profile_forward(module, images, settings.repeats, settings.warmup)
        print(f'\n{profiling.to_markdown(str(workload), found)}')


def show(steps: Sequence[Any], label: str) -> Iterable[Any]:
    """Progress on the error stream: a bar, or one line where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(label, file=sys.stderr, flush=True)
    return track(steps, label, console=console, transient=True, disable=not console.is_terminal)


def write(args: argparse.Namespace, found: list[results.Result], environment: dict[str, Any]) -> None:
    title = '{device} ({processor}), torch {torch}'.format(**environment)
    text = f'{title}\n\n{results.to_markdown(found)}\n\n{results.matmul_rates(found)}\n'
    fits = results.linearity(found)
    if fits is not None:
        text += f'\nLargest ratio to a fit that is linear in the pixels:\n\n{fits}\n'
    print(f'\n{text}')
    for file in args.out:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == '.md':
            file.write_text(text, encoding='utf-8')
        elif file.suffix == '.csv':
            file.write_text(results.to_csv(found), encoding='utf-8')
        elif file.suffix == '.json':
            file.write_text(results.to_json(found, environment), encoding='utf-8')
        else:
            plot.plot(args.plot, found, file, title)
        print(f'written: {file}')


if __name__ == '__main__':
    main()
