"""Sine waves: the regression of few-shot learning (Finn et al. 2017, arXiv:1703.03400, sec. 5.1). A class is a function, its items are points.

Amplitude 0.1 to 5, phase 0 to pi, inputs -5 to 5. Draws are integers; values are rounded to 1e-4, far above what the sine of one processor
differs by from another's, so every machine makes the same bytes.
"""

import numpy as np

from components.domains.options import SinusoidOptions
from components.domains.pool import PoolClass, Source
from components.draws import below, bits, key_of


def build(options: SinusoidOptions, mirror: str | None = None) -> Source:
    """Draw every function and its points."""
    count, points = options.functions, options.points
    key = key_of("sinusoid", options.seed)
    draws = bits(key, np.arange(count * (2 + points), dtype=np.uint64)).reshape(count, 2 + points)
    amplitude = (100 + below(draws[:, 0], 4_901)) / 1_000  # thousandths
    phase = below(draws[:, 1], 3_142) / 1_000
    x = below(draws[:, 2:], 10_001).astype(np.int64) / 1_000 - 5
    y = np.round(amplitude[:, None] * np.sin(x - phase[:, None]), 4)
    names = [f"{i}: {a:.3f} sin(x - {p:.3f})" for i, (a, p) in enumerate(zip(amplitude, phase, strict=True))]
    classes = [PoolClass(name, name, points) for name in names]
    return Source(classes, x.reshape(-1, 1).astype(np.float32), [""] * (count * points), y.reshape(-1).astype(np.float32))
