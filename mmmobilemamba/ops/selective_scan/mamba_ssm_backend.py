"""The CUDA kernel of the package mamba-ssm."""
