"""What a `fit` will need, before it starts: memory, time, and switches if it does not fit."""
