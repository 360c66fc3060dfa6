"""A study from one file: fits, figures, measures, findings and a report."""
