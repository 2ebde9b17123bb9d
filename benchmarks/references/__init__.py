"""What references and shared memory cost."""
