"""What every stage stands on: refusals, files, the machine."""
