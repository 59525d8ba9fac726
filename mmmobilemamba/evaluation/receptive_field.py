"""Effective receptive field: which input pixels the centre of a feature map depends on.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
NeurIPS 2016, section 4: the gradient of the centre output, summed over channels, at the input.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from .images import read_image

# Of ImageNet, red, green and blue, as the models of OpenMMLab are trained with.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MASSES = (0.2, 0.3, 0.5, 0.99)


def effective_receptive_field(backbone: nn.Module, images: Iterable[Tensor], out: int = -1) -> Tensor:
    """Gradient of the centre of a backbone's output at its input, averaged over images.

    As in the figures of the field, only positive gradients count, summed over the input channels.

    Args:
        backbone: Takes (1, 3, H, W) and returns a map or a sequence of maps, highest resolution first.
            It is put into evaluation mode.
        images: Normalised images, (3, H, W), all of one size.
        out: Which of the maps.

    Returns:
        (H, W) float64, at least 0; its sum is the gradient mass.

    Raises:
        ValueError: If there is no image.
        UserError: If the backbone has no such map.
    """
    backbone.eval()
    total, count = None, 0
    for image in images:
        inputs = image[None].detach().clone().requires_grad_()
        maps = backbone(inputs)
        maps = (maps,) if isinstance(maps, Tensor) else maps
        if not -len(maps) <= out < len(maps):
            raise UserError(
                f'There is no map {out}: {type(backbone).__name__} gives {len(maps)}, which are counted from '
                f'0 to {len(maps) - 1}, or from the last by -1, -2, ….'
            )
        features = maps[out]
        height, width = features.shape[-2:]
        (gradient,) = torch.autograd.grad(features[..., height // 2, width // 2].sum(), inputs)
        field = gradient[0].double().clamp(min=0).sum(0).cpu()
        total = field if total is None else total + field
        count += 1
    if total is None:
        raise ValueError('an effective receptive field needs at least one image')
    return total / count


def normalised_images(paths: Iterable[Path], size: int) -> list[Tensor]:
    """Read images, cut the largest centred square and bring it to ``size``, (3, size, size) each.

    Raises:
        ImageError: If one cannot be read.
    """
    images = []
    for path in paths:
        image = read_image(path)
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = mmcv.imresize(image[top : top + side, left : left + side], (size, size))
        normalised = mmcv.imnormalize(square, np.array(MEAN), np.array(STD), to_rgb=True)
        images.append(torch.from_numpy(normalised).permute(2, 0, 1).float())
    return images


def noise_images(count: int, size: int, seed: int) -> list[Tensor]:
    """Gaussian noise of mean 0 and variance 1, (3, size, size) each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, size, size, generator=generator) for _ in range(count)]


def area_shares(field: Tensor, masses: Sequence[float] = MASSES) -> list[float]:
    """Share of the input's area taken by the smallest centred square that holds each share of the mass.

    Args:
        field: (H, W), at least 0.
        masses: Shares of the gradient mass, between 0 and 1.

    Returns:
        One share of the area, between 0 and 1, for each mass.

    Raises:
        UserError: If there is no gradient anywhere.
    """
    height, width = field.shape
    values = field.double()
    if not values.sum() > 0:
        raise UserError('The gradient is zero everywhere: the output does not depend on the input.')
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None]
    ring = torch.maximum(rows, columns).flatten()
    mass = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, values.flatten())
    held = mass.cumsum(0) / values.sum()
    area = torch.bincount(ring).cumsum(0) / ring.numel()
    # A rounding error must not ask for more than all there is.
    return [area[int((held >= min(m, float(held[-1])) - 1e-12).nonzero()[0])].item() for m in masses]


def draw_fields(fields: Mapping[str, Tensor], path: Path, source: str, decades: float = 4) -> None:
    """Draw fields side by side on one logarithmic scale.

    Args:
        fields: (H, W) by name; each is divided by its own largest value.
        path: The picture to write.
        source: What the fields were measured on, for the title.
        decades: How many powers of ten the colours span.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(fields) + 1, 4.3), layout='constrained')
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        share = (field / field.max()).clamp(min=10**-decades)
        height, width = field.shape
        drawn = axis.imshow(np.log10(share.numpy()), vmin=-decades, vmax=0, cmap='viridis')
        axis.set_title(textwrap.fill(name, 34), fontsize='medium')
        axis.set_xlabel('x (pixels)')
        axis.set_xticks([0, width // 2, width])
        axis.set_yticks([0, height // 2, height])
    axes[0].set_ylabel('y (pixels)')
    figure.colorbar(drawn, ax=list(axes), label='log10(gradient / its maximum)', shrink=0.8)
    figure.suptitle(f'Effective receptive field of the centre output, {source}')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
