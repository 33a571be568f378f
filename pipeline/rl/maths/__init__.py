"""Pure functions on tensors; they import torch alone."""
