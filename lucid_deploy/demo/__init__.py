"""The bundled model and its task."""
