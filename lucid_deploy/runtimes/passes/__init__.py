"""Graph passes that run when a session opens. Each docstring says what a pass requires and what results.

They change ``onnx.ModelProto`` in memory; the file stays as it is, and weights need not be loaded. Passes of export
and, in ``runtimes.tensorrt.passes``, of ``lucid-deploy build`` change ``onnx_ir`` models. Those here do not: importing
``onnx_ir``, which imports SymPy, takes longer than opening a small model.
"""
