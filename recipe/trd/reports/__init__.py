"""What a run prints, and the files that it leaves: progress, provenance, dumped samples, summary."""
