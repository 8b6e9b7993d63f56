"""Divergences of ONNX."""
