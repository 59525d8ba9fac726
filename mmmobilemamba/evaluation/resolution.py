"""High-resolution evaluation: accuracy and cost of one checkpoint at several test sizes."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.config_nodes import innermost_test_dataset, type_name
from ..errors import UserError

# What a detector or segmentor is judged by, in the order of preference for the plot.
MAIN_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU')
MODES = ('whole', 'slide')


@dataclass(frozen=True)
class TestSize:
    """What ``--sizes`` gives: the shorter side, or a whole scale.

    Attributes:
        short: The shorter side in pixels, or None.
        scale: (height, width), or None.
    """

    # pytest would take it for a test by its name.
    __test__ = False

    short: int | None = None
    scale: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> 'TestSize':
        """Read '800' or '800x1333' (height x width).

        Raises:
            UserError: If it is neither.
        """
        parts = text.lower().replace('×', 'x').split('x')
        if not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts) or len(parts) > 2:
            raise UserError(
                f'The size {text!r} is neither a shorter side in pixels (512) nor a scale, height x width '
                '(800x1333).'
            )
        if len(parts) == 1:
            return cls(short=int(text))
        return cls(scale=(int(parts[0]), int(parts[1])))

    def fit(self, scale: tuple[int, int]) -> tuple[int, int]:
        """The scale of a pipeline at this size: in the proportions it has, or as given."""
        if self.scale is not None:
            return self.scale
        return tuple(round(side * self.short / min(scale)) for side in scale)


@dataclass
class SizeResult:
    """Accuracy and cost at one test size.

    Attributes:
        scale: (height, width) of the pipeline's ``Resize``.
        mode: 'whole' or 'slide'.
        metrics: Everything that the evaluator of the config reports.
        input_size: (height, width) in pixels of the image that cost was measured with.
        gflops: Multiply-adds of one prediction without the selective scan, in 1e9.
        scan_gflops: Operations of the selective scan, in 1e9.
        latency_ms: Median time of one prediction, batch size 1.
        peak_memory_mib: Peak memory of one prediction in MiB, as
            :func:`mmmobilemamba.benchmark.memory.peak_memory` tells it; None where it cannot be known.
        device: Name of the device.
    """

    scale: tuple[int, int]
    mode: str
    metrics: dict[str, float]
    input_size: tuple[int, int]
    gflops: float
    scan_gflops: float
    latency_ms: float
    peak_memory_mib: float | None
    device: str

    @property
    def short(self) -> int:
        """Shorter side of the scale."""
        return min(self.scale)


class ResultFile:
    """Results on disk, written whole after each one, so that an interrupted run can go on.

    Args:
        path: A JSON file; it need not exist.

    Raises:
        UserError: If it exists and is no file of results.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self._results = json.loads(path.read_text(encoding='utf-8'))['results']
                [SizeResult(**entry) for entry in self._results.values()]
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f'{path} is not a file of results ({type(error).__name__}: {error}). Remove it, or '
                    'choose another --work-dir.'
                ) from error

    def get(self, key: str) -> SizeResult | None:
        """The result of that key, if it is there."""
        entry = self._results.get(key)
        return SizeResult(**entry) if entry else None

    def add(self, key: str, result: SizeResult) -> None:
        """Keep a result."""
        self._results[key] = asdict(result)
        scratch = self.path.with_suffix('.tmp')
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps({'results': self._results}, indent=1), encoding='utf-8')
        os.replace(scratch, self.path)


def scale_name(scale: tuple[int, int]) -> str:
    """A (height, width) as text."""
    return 'x'.join(map(str, scale))


def result_key(cfg: Config, checkpoint: str, scale: tuple[int, int], mode: str, *others: str) -> str:
    """Name of a result by all that it depends on: config, weights, data, size, mode and others."""
    digest = hashlib.sha256(cfg.pretty_text.encode())
    digest.update(repr(_data_state(cfg)).encode())
    if Path(checkpoint).is_file():
        with open(checkpoint, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        digest.update(checkpoint.encode())
    return ' '.join([scale_name(scale), mode, *others, digest.hexdigest()[:16]])


def _data_state(cfg: Config) -> list[tuple[str, int, int]]:
    """Path, size and time of change of the test data's files: images, annotations, label maps."""
    dataset = innermost_test_dataset(cfg)
    evaluators = cfg.get('test_evaluator') or []
    root = Path(dataset.get('data_root') or '')
    places = [root / p for p in (dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()) if p]
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        places += [Path(evaluator['ann_file'])] if evaluator.get('ann_file') else []
    files = {file for place in places for file in (place.rglob('*') if place.is_dir() else [place])}
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files) if f.is_file()]


def test_scale(cfg: Config) -> tuple[int, int]:
    """The (height, width) that the test pipeline of a config resizes to.

    Raises:
        UserError: If the pipeline has not exactly one ``Resize`` with a scale, or other steps that fix
            a size.
    """
    scale = _resize_step(cfg)['scale']
    return (scale, scale) if isinstance(scale, int) else tuple(scale)[::-1]


test_scale.__test__ = False


def set_test_scale(cfg: Config, scale: tuple[int, int]) -> None:
    """Make the test pipeline of a config resize to ``scale``, (height, width)."""
    # Pipelines have it the other way round.
    _resize_step(cfg)['scale'] = scale[::-1]


def _resize_step(cfg: Config) -> dict[str, Any]:
    dataset = innermost_test_dataset(cfg)
    kinds = [type_name(step) for step in dataset.pipeline]
    fixed = [kind for kind in kinds if kind in ('Pad', 'CenterCrop', 'RandomCrop', 'RandomResize')]
    steps = [
        s for s, kind in zip(dataset.pipeline, kinds, strict=True) if kind == 'Resize' and s.get('scale')
    ]
    if fixed or len(steps) != 1:
        raise UserError(
            'The test size is set at the one Resize(scale=…) of the test pipeline, but the steps of this '
            f'config are {", ".join(kinds)}. Give it one Resize with a scale, and none of Pad, CenterCrop, '
            'RandomCrop and RandomResize.'
        )
    return steps[0]


def set_mode(
    cfg: Config, mode: str, crop: tuple[int, int] | None = None, stride: tuple[int, int] | None = None
) -> None:
    """Choose how a segmentor goes over an image.

    Args:
        cfg: The config to change; of a detector, only 'whole' is possible.
        mode: 'whole' or 'slide'.
        crop: (height, width) of the window; by default the crop size of training.
        stride: (vertical, horizontal) step of the window; by default two thirds of the window.

    Raises:
        UserError: If the config is of a detector, or no crop size can be found.
    """
    if cfg.default_scope != 'mmseg':
        if mode != 'whole':
            raise UserError('--mode slide goes over an image window by window, which only segmentors can.')
        return
    if mode == 'whole':
        cfg.model.test_cfg = dict(mode='whole')
        return
    crop = crop or cfg.get('crop_size') or cfg.model.get('data_preprocessor', {}).get('size')
    if crop is None:
        raise UserError('The config has no crop_size; give the window of --mode slide with --crop.')
    stride = stride or tuple(max(1, side * 2 // 3) for side in crop)
    if min(*crop, *stride) < 1:
        raise UserError(f'--crop {tuple(crop)} and --stride {tuple(stride)}: allowed are pixels from 1 up.')
    if any(step > side for step, side in zip(stride, crop, strict=True)):
        raise UserError(f'--stride {stride} leaves gaps between windows of {tuple(crop)} pixels.')
    cfg.model.test_cfg = dict(mode='slide', crop_size=tuple(crop), stride=tuple(stride))
