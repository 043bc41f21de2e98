"""Graph passes that run when a session opens. Each docstring says what a pass requires and what results.

They change ``onnx.ModelProto`` in memory; the file stays as it is, and weights need not be loaded. Passes of export and
of ``lucid-deploy build`` are in ``lucid_deploy.export.passes`` and change ``onnx_ir`` models. Here ``onnx_ir`` would
cost more than the passes: importing it takes longer than opening a small model, as it imports SymPy.
"""
