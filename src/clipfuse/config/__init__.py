"""Configuration: strict models, YAML, presets, `a.b=c`, and FusionBench's words. Knows no method."""

from clipfuse.config.overrides import apply_overrides
from clipfuse.config.presets import load_preset, presets
from clipfuse.config.read import read_yaml
from clipfuse.config.schema import Config, EmptyConfig, parse

__all__ = ["Config", "EmptyConfig", "apply_overrides", "load_preset", "parse", "presets", "read_yaml"]
