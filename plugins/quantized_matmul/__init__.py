"""The product by a weight in blocks of 4 or 8 bits, inputs rounded to 8 bits: ``MatMulNBits`` at accuracy level 4."""
