"""From comic pages or raw photos to a folder of instance images."""
