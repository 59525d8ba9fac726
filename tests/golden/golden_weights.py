"""Deterministic weights for a MobileMamba checkpoint in the official layout.

Every tensor is a function of its own name and shape alone, so two
implementations that agree on the layout can be compared without a download.
"""

import json
import zlib

import numpy as np


def golden_tensor(name, shape):
    """One tensor, float32 (int64 zero for num_batches_tracked)."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return np.zeros(shape, np.int64)
    if leaf == 'running_var' or (leaf == 'weight' and len(shape) == 1):
        value = rng.uniform(0.5, 1.5, shape)  # BN / LN scale, variance
    elif leaf in ('bias', 'running_mean'):
        value = 0.1 * rng.standard_normal(shape)
    elif leaf == 'A_logs':
        value = 0.5 * rng.standard_normal(shape)
    elif leaf == 'Ds':
        value = 1 + 0.2 * rng.standard_normal(shape)
    elif leaf == 'dt_projs_bias':
        value = rng.uniform(-3, 0, shape)
    elif leaf in ('x_proj_weight', 'dt_projs_weight'):  # large enough for the scan to show
        value = 6 * rng.standard_normal(shape) / np.sqrt(shape[-1])
    elif '_scale.' in name:  # base_scale, wavelet_scale
        value = rng.uniform(0.1, 1.0, shape)
    else:  # conv / linear / projections
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        value = 0.4 * rng.standard_normal(shape) / np.sqrt(fan_in)
    return np.asarray(value, np.float32)


def golden_state_dict(keys_json, keep=('wt_filter', 'iwt_filter')):
    """name → array for every key but the fixed Haar filters, which a model builds itself."""
    keys = json.loads(keys_json.read_text())
    return {k: golden_tensor(k, tuple(s)) for k, s in keys.items() if k.rsplit('.', 1)[-1] not in keep}
