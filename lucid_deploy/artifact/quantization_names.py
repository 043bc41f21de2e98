"""What quantized weights are made of, by name: schemes, formats, and the parts that a weight is stored in."""

from __future__ import annotations

WHOLE_SCHEMES = {"int8": 8, "int4": 4}  # bits of whole numbers
FLOAT_SCHEMES = {"fp8": 8, "nvfp4": 4}  # bits of floating-point numbers
SCHEMES = {**WHOLE_SCHEMES, **FLOAT_SCHEMES}
FORMATS = ("matmulnbits", "qdq")
ACTIVATIONS = ("int8", "float")
# What a checkpoint in fp8 may say of its products' inputs: see Quantization.activations.
STATIC_FP8, TOKEN_FP8, GROUP_FP8 = "fp8-static", "fp8-token", "fp8-group"
FP8_ACTIVATIONS = (STATIC_FP8, TOKEN_FP8, GROUP_FP8)
BLOCK_SIZES = (16, 32, 64, 128, 256)
GRANULARITIES = ("block", "channel", "tensor")
# Names of a quantized weight's parts in graphs and weight file, behind the weight's own.
PACKED, SCALES, ROWS = ".packed", ".scales", ".packed_rows"
ZEROS, OFFSETS = ".zero_points", ".offsets"
WHOLE_SCALE, INPUT_SCALE = ".whole_scale", ".input_scale"
PARTS = (PACKED, SCALES, ROWS, ZEROS, OFFSETS, WHOLE_SCALE, INPUT_SCALE)
TYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8e4m3fn": 8, "uint8": 8, "int8": 8}
TYPE_BITS |= {"int4": 4, "float4e2m1": 4}
# The smallest scale, by its type, where scales must be positive: that of a block of zeros.
LEAST_SCALE = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
