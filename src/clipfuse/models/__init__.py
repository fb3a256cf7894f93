"""transformers' CLIP models: building, loading, encoding. transformers is imported when a model is asked for."""
