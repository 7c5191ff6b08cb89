"""CloudShift Lab: move a running PyTorch job to another cloud without losing a training step."""

__version__ = "0.1.0"
