"""The network: backbone, rectified flow, compiled blocks, fused kernels."""
