"""Weight quantization: exports call ``plan``; each method has its own module, and ``method`` finds it by name.

Installed packages can add methods with the entry point group ``lucid_deploy.quantization``.
"""
