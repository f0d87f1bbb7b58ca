"""What every HTML page of the kit shares: the shell and the pictures."""
