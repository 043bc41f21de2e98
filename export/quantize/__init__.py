"""Quantization of weights: what is quantized (``plan``), and how numbers are chosen, one file per method.

``registry`` lists the methods; installed packages add theirs under the entry point group ``lucid_deploy.quantization``.
"""
