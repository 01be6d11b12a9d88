"""What people read: pure functions from values to Discord layouts and sentences."""
