#!/usr/bin/env python3
"""Writes the golden vectors of tests/unit/quant beside this file, with the reference Python package of the format.

    pip install gguf==0.19.0 numpy && python3 tests/data/quant/generate.py

One file per type. Lines, in hexadecimal, floats as their 32 bits:

    dequantize <bytes of a row> <values>      what the reference makes of random block bytes
    quantize <values> <bytes of a row>        what its quantiser makes of random values (types where it has one)

And types.txt, a line for each type that files may hold: its number, its name, values and bytes of a block.
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

HERE = pathlib.Path(__file__).parent
NAMES = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
# Where the binary16 fields of a block stand: random bytes there would mostly be NaN or huge.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}


def hex_floats(values):
    return "".join("%08x" % v for v in np.asarray(values, np.float32).view(np.uint32))


def random_scale(rng, i):
    """Ordinary, subnormal, negative and zero scales in turn."""
    value = [rng.uniform(0.001, 2.0), rng.uniform(1e-7, 6e-5), -rng.uniform(0.01, 30.0), 0.0][i % 4]
    return np.float16(value).view(np.uint16)


def main():
    rng = np.random.default_rng(20240801)
    for name in NAMES:
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        blocks = 4 if length == 256 else 8 if length == 32 else 64
        lines = []
        for i in range(blocks):
            raw = rng.integers(0, 256, size, dtype=np.uint8)
            for j, at in enumerate(HALVES.get(name, [])):
                raw[at:at + 2] = np.frombuffer(random_scale(rng, i + j).tobytes(), np.uint8)
            source = raw.view(np.float16) if name == "F16" else raw
            values = quants.dequantize(source, kind).astype(np.float32)
            if not np.isnan(values).any():
                lines.append("dequantize %s %s" % (raw.tobytes().hex(), hex_floats(values)))
        if length != 256:
            for i in range(blocks):
                values = (rng.standard_normal(length) * 10.0 ** rng.uniform(-3, 3)).astype(np.float32)
                if length > 1 and i == 0:
                    values[:] = 0
                if length > 1 and i == 1:
                    values = np.abs(values)
                row = quants.quantize(values, kind)
                lines.append("quantize %s %s" % (hex_floats(values), row.tobytes().hex()))
        (HERE / (name.lower() + ".txt")).write_text("\n".join(lines) + "\n")
    # The package has an older Q8_1 (its sums were floats; ggml-common.h has halves), and lacks what came after it.
    types = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGML_QUANT_SIZES}
    types |= {9: ("Q8_1", 32, 36), 42: ("Q2_0", 64, 18)}
    (HERE / "types.txt").write_text("".join("%d %s %d %d\n" % (n, *types[n]) for n in sorted(types)))


if __name__ == "__main__":
    main()
