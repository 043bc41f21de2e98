"""The product by a weight in blocks of 4 or 8 bits, with inputs rounded to 8 bits: onnxruntime's ``MatMulNBits``."""
