"""What surrounds a run: terminal, watchdog, resources, what dead processes leave behind."""
