"""Training of encoders: losses, regularizers, distillation. Knows no index."""

if __name__ != "lsr.training":
    raise ImportError(
        "this folder is the package lsr.training: install the project (pip install -e .) and import lsr.training"
    )
