"""Code that several operators share: key norms, Triton and C++ helpers, launch plans of Triton kernels."""
