"""Models as they lie on disk and in memory."""
