"""What a change of policies would do, without doing it: `sluice what-if`."""
