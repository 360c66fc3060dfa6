"""What happens while the Trainer runs."""
