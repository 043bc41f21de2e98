"""Running an artifact's graphs in OpenVINO."""
