"""From folders of images to batches, and images that are drawn once."""
