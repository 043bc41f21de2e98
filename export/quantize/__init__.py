"""Quantization of weights: ``plan`` has what an export calls; each method has a file, and ``method`` finds it by name.

Installed packages add methods under the entry point group ``lucid_deploy.quantization``.
"""
