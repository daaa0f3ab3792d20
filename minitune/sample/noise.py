"""The randomness of sampling: one number for each step of a text, from its seed and the step alone.

Nothing else goes in: not the place of the row in a batch, not what was drawn before, not the device. So a seed means
the same text by itself and among others, today and on another machine. Whole-number arithmetic gives the same bits
everywhere; a torch.Generator would not do, since its CPU engine reads the low 32 bits of its seed only.
"""

_64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: steps of it visit every number once


def mix(z: int) -> int:
    """A bijection of 64-bit numbers that changes about half of the bits of the result for any bit of ``z``.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants of Stafford's variant 13).
    """
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
    return z ^ (z >> 31)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for step 0, 1, 2, ... of the text with this seed.

        u = (top 53 bits of mix(mix(seed + g) + (step + 1) g)) / 2^53          g = 2^64 / golden ratio

    The seed is mixed before the steps are counted, so that neighbouring seeds do not share a stream.
    """
    start = mix((seed + GOLDEN) & _64)
    return (mix((start + (step + 1) * GOLDEN) & _64) >> 11) * 2.0**-53  # SAMP-8
