"""Studies: many fits, figures, metrics, findings and a report from one file."""
