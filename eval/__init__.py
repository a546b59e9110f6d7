"""Evaluation: datasets by name, metrics through ranx, reports."""

if __name__ != "lsr.eval":
    raise ImportError("this folder is the package lsr.eval: install the project (pip install -e .) and import lsr.eval")
