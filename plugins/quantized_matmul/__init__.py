"""Product with a 4- or 8-bit block-quantized weight, inputs rounded to int8: ``MatMulNBits`` at accuracy level 4."""
