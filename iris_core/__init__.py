"""IRIS: self-play fine-tuning under a Rényi objective. The science and the machinery, usable without an orchestrator."""

__version__ = "0.1.0"
