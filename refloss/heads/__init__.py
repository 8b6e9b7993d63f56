"""Hugging Face transformers' loss functions, by their names and keywords."""
