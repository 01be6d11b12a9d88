"""The door between bot and trainer: what a job is, what a trainer says, what a dataset holds (pydantic only)."""
