"""The science of known: KNOW prediction (CVPR 2026, arXiv 2508.05059) as a library that needs no server."""

__version__ = "0.1.0"
