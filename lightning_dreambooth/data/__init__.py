"""Image folders to batches, checks of images and prompts, and stores of drawn images."""
