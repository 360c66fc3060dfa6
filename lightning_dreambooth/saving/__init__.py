"""Files of a run: folders, resumable states and exports."""
