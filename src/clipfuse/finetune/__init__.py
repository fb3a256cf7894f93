"""Fine-tuning of vision encoders: experts from a base."""
