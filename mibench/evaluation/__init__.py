"""What reconstructions are worth: scores, checks, verification; no files, no runs."""
