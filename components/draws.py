"""Counter-based random draws: every number is a pure function of (key, counter), so order, chunking and processes cannot change it.

The mixer is SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", sec. 3): integer
arithmetic only, hence the same bits on every processor.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def key_of(*parts: object) -> np.uint64:
    """Return a 64-bit key for a tuple of names and numbers."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def bits(key: np.uint64, counters: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each counter (uint64, any shape)."""
    z = np.asarray(counters, dtype=np.uint64) * _GOLDEN
    z += key
    z ^= z >> np.uint64(30)
    z *= _M1
    z ^= z >> np.uint64(27)
    z *= _M2
    z ^= z >> np.uint64(31)
    return z


def below(random_bits: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Map 64 random bits to integers in [0, bounds), bounds < 2**32, by multiply-shift (bias below 2**-32 * bounds)."""
    high = random_bits >> np.uint64(32)
    high *= np.asarray(bounds, dtype=np.uint64)
    high >>= np.uint64(32)
    return high


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2**63) for a generator that wants a plain integer."""
    return int(key_of(*parts) >> np.uint64(1))
