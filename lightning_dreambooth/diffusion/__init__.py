"""Training objective, sampling loop and requests for images."""
