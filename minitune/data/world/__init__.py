"""A small world in two languages, written by a generator: text to train a base model on, instructions to tune it with.

documents(count, seed=...)                 stories, facts, lists and scenes (``text.py``)
tasks(count, seed=..., test=...)           questions with the one answer that is right (``tasks.py``)
"""

from minitune.data.world.tasks import KINDS, Task, instructions, tasks, write_instructions
from minitune.data.world.text import documents, vocabulary

__all__ = ["KINDS", "Task", "documents", "instructions", "tasks", "vocabulary", "write_instructions"]
