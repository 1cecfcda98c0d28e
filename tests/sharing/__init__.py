"""What hosts that share a filesystem must keep: rules of one worker on it, and two workers with a mount each."""
