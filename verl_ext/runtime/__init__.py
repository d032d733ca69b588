"""What surrounds a run: terminal, watchdog, resources, files, versions, what dead processes leave behind."""
