"""What the authors' code computes on a CPU, for weights that are a function of their names."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from .golden_weights import golden_state_dict

GOLDEN_VARIANTS = ('t2', 't4', 's6', 'b1')
FOLDER = Path(__file__).parent


def authors_state_dict(variant: str) -> dict[str, torch.Tensor]:
    """A classification checkpoint of the authors, without its constant wavelet filters."""
    arrays = golden_state_dict(FOLDER / f'keys_{variant}.json')
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def golden_case(variant: str) -> SimpleNamespace:
    """Weights, a batch of two images, and the authors' features, loss and gradients for them."""
    with np.load(FOLDER / f'golden_{variant}.npz') as stored:
        arrays = dict(stored)
    rng = np.random.Generator(np.random.PCG64(7))

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    image = normal((2, 3, 96, 64))
    features = [torch.from_numpy(arrays[name]) for name in ('stem', 'stage1', 'stage2', 'stage3')]
    return SimpleNamespace(
        state_dict=authors_state_dict(variant),
        image=image,
        features=features,
        loss_weights=[normal(feature.shape) for feature in features],
        loss=float(arrays['loss']),
        grad_input=torch.from_numpy(arrays['grad_input']),
        grad_norms=dict(zip(arrays['grad_names'].tolist(), arrays['grad_norms'].tolist(), strict=True)),
    )
