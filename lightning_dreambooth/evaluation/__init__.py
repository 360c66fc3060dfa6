"""What is drawn to be measured, and what the measurements mean."""
