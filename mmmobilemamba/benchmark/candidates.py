"""The models of a benchmark, as a command line names them."""

import copy
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..arch import ARCHS
from ..backbones import MobileMamba
from ..deploy import switch_to_deploy
from ..engine import load_config
from ..errors import UserError
from ..evaluation.backbone_spec import build_backbone, short_name
from ..evaluation.load import load_model
from .timing import Run, inference

FOLDED, COMPILED = '+deploy', '+compile'

# Side of the square images that the authors classify, and top-1 accuracy (%) on ImageNet-1K of their plain
# training: published, not measured here. B1, B2 and B4 are one network.
PUBLISHED_SIZES = dict(t2=192, t4=192, s6=224, b1=256, b2=384, b4=512)
_B_TOP1 = {256: 79.9, 384: 81.6, 512: 82.5}
PUBLISHED_TOP1 = dict(t2={192: 73.6}, t4={192: 76.1}, s6={224: 78.0}, b1=_B_TOP1, b2=_B_TOP1, b4=_B_TOP1)


@dataclass(frozen=True)
class Candidate:
    """One model to measure.

    Attributes:
        name: its heading in tables.
        spec: what it is built from; see :meth:`parse`.
        folded: whether it is folded for deployment.
        compiled: whether its inference is compiled by torch.compile.
    """

    name: str
    spec: str
    folded: bool = False
    compiled: bool = False

    @classmethod
    def parse(cls, text: str, deploy: bool = False) -> 'Candidate':
        """Read 'b1', 'config.py,checkpoint.pth', 'timm:NAME', 'mmdet.NAME(…)', '…+deploy+compile', 'title=…'.

        Args:
            text: what to build, without building it yet.
            deploy: fold it, also where the text does not say so.
        """
        form = r'(?:([\w .-]+)=)?(.*?)((?:\+deploy|\+compile)*)'
        title, spec, ways = re.fullmatch(form, text.strip()).groups()
        folded, compiled = deploy or FOLDED in ways, COMPILED in ways
        if title is None:
            title = short_name(spec) + folded * FOLDED + compiled * COMPILED
        return cls(title, spec, folded, compiled)

    @property
    def is_whole(self) -> bool:
        """Whether it is a detector or segmentor, not a backbone."""
        return Path(self.spec.partition(',')[0]).suffix == '.py'

    @property
    def published_size(self) -> int | None:
        """Side of the images that this variant of MobileMamba is published for."""
        return PUBLISHED_SIZES.get(self.spec)

    def published_top1(self, height: int, width: int) -> float | None:
        """Published top-1 accuracy (%) at that size, if there is one."""
        return PUBLISHED_TOP1.get(self.spec, {}).get(height) if height == width else None

    def build(self) -> nn.Module:
        """The model in evaluation mode on the CPU, from images (B, 3, H, W) to its outputs.

        Weights are random, of a fixed seed, where the text names none.

        Raises:
            UserError: if there is no such model, or it cannot be built or folded.
            CheckpointError: if the weights cannot be read or do not fit.
        """
        torch.manual_seed(0)
        if self.is_whole:
            model = _whole_model(self.spec)
        elif self.spec.startswith('timm:'):
            model = _timm_model(self.spec.removeprefix('timm:'))
        else:
            model = _backbone(self.spec)
        # Some backbones of mmdet return nothing here.
        model.eval()
        return _fold(model) if self.folded else model


@dataclass(frozen=True)
class Workload:
    """A forward pass.

    Attributes:
        candidate: the model.
        height: of the images in pixels.
        width: of the images in pixels.
        batch: number of images.
        dtype: of weights and images.
        channels_last: whether both lie in channels-last memory.
    """

    candidate: Candidate
    height: int
    width: int
    batch: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix('torch.')
        return f'{self.candidate.name}, {self.height}x{self.width}, batch {self.batch}, {dtype}'

    def prepare(self, model: nn.Module, device: torch.device | str) -> tuple[nn.Module, Tensor]:
        """Bring a model to device and data type, and make images for it."""
        layout: dict[str, Any] = dict(memory_format=torch.channels_last) if self.channels_last else {}
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.height, self.width, generator=generator)
        return model.to(device, self.dtype, **layout), images.to(device, self.dtype, **layout)

    def make(self, device: torch.device | str) -> tuple[nn.Module, Tensor]:
        """A model of its own and images for it."""
        return self.prepare(self.candidate.build(), device)

    def runner(self, model: nn.Module, device: torch.device | str) -> Run:
        """Its forward pass, in a copy of the model that is compiled where the candidate is."""
        module, images = self.prepare(copy.deepcopy(model), device)
        run = inference(module, images)
        if self.candidate.compiled:
            # Importing the compiler takes seconds.
            from torch._inductor import config as inductor_config

            # One size each: after a second one, sizes would become variables of slower code.
            module.compile(dynamic=False)
            # Without gradients, weights are constants that the compiler may bring into a layout of its own.
            with inductor_config.patch(freezing=True):
                run()
        return run


class Network(nn.Module):
    """A detector or segmentor without what follows its network: decoding of boxes, resizing of maps.

    The proposals of a two-stage detector are part of it.
    """

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        self.model = model
        self.scope = scope

    def forward(self, images: Tensor) -> Any:
        return self.model(images, self._samples(images), mode='tensor')

    def _samples(self, images: Tensor) -> list | None:
        if self.scope != 'mmdet':
            return None
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[-2:])
        sizes = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
        return [DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0))) for _ in images]


def _backbone(spec: str) -> nn.Module:
    try:
        return build_backbone(spec)
    except UserError as error:
        if '(' in spec or spec.partition(',')[0] in ARCHS:
            raise
        variants = ', '.join(ARCHS)
        raise UserError(
            f'The model {spec!r} is none of: a variant of MobileMamba ({variants}), one with weights '
            '(b1,weights.pth), a detector or segmentor (config.py or config.py,checkpoint.pth), '
            "'mmdet.NAME(…)' or the same of mmseg or mmpretrain, with arguments by name, timm:NAME."
        ) from error


def _whole_model(spec: str) -> nn.Module:
    path, _, checkpoint = spec.partition(',')
    cfg = load_config(path)
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg') or 'model' not in cfg:
        raise UserError(f'{path} has no model of mmdet or mmseg (default_scope={scope!r}).')
    if checkpoint:
        return Network(load_model(cfg, checkpoint), scope)
    init_default_scope(scope)
    # Building downloads nothing: weights that the config names are loaded by init_weights() alone.
    return Network(revert_sync_batchnorm(MODELS.build(cfg.model)), scope)


def _timm_model(name: str) -> nn.Module:
    timm = _import_timm(name)
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5)
        raise UserError(
            f'timm {timm.__version__} has no model {name!r}. '
            + (f'Similar: {", ".join(near)}. ' if near else '')
            + 'timm.list_models() lists all.'
        )
    return timm.create_model(name, pretrained=False, num_classes=0)


def _import_timm(name: str) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        # A torchvision of another torch fails with a RuntimeError.
        raise UserError(
            f'timm:{name} needs timm, which cannot be imported ({error}). Install it with the torchvision '
            f'that belongs to torch {torch.__version__}: pip install timm torchvision.'
        ) from error
    return timm


def _fold(model: nn.Module) -> nn.Module:
    """Fold for deployment: as the model itself can, else batch norms into the convolutions before them."""
    if any(isinstance(module, MobileMamba) for module in model.modules()):
        switch_to_deploy(model)
        return model
    return fuse_conv_bn(_folded_parts(model))


def _folded_parts(model: nn.Module) -> nn.Module:
    """Call the outermost ``switch_to_deploy()`` (mmpretrain) or ``fuse()`` (timm) of each branch."""
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
        return model
    if hasattr(model, 'fuse'):
        fused = model.fuse()
        return model if fused is None else fused
    for name, child in model.named_children():
        setattr(model, name, _folded_parts(child))
    return model
