"""Command line: verbs, sections, help and exit codes."""
