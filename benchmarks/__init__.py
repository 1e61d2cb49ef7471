"""What gatelens costs beside plain TransformerLens, transformers and other toolkits: ``python -m benchmarks``."""
