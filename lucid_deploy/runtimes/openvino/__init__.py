"""Run an artifact's inlined graphs in OpenVINO."""
