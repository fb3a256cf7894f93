"""Tasks and task pools: data in YAML, no code."""

from clipfuse.tasks.pool import TaskPoolConfig
from clipfuse.tasks.task import Task, catalog, find_task, fold, read_task

__all__ = ["Task", "TaskPoolConfig", "catalog", "find_task", "fold", "read_task"]
