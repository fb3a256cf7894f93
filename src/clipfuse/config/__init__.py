"""Configuration: strict models here; YAML, presets, `a.b=c` and FusionBench's words in their modules. Knows no rule.

Only what needs no YAML is imported with the room: merging in memory must not load PyYAML.
"""

from clipfuse.config.schema import Config, EmptyConfig, example_settings, parse

__all__ = ["Config", "EmptyConfig", "example_settings", "parse"]
