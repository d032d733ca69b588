"""What can be known to be wrong before a process is started."""
