"""Quantization of weights: an export calls ``choose``; each method has a file, and ``method`` finds it by name.

Installed packages add methods under the entry point group ``lucid_deploy.quantization``.
"""
