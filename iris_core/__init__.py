"""IRIS: self-play fine-tuning under a Rényi objective; usable without an orchestrator."""

__version__ = "0.1.0"
