"""Structured concurrency across CPU cores."""
