"""The network: backbone, rectified flow, compiled blocks, replicas."""
