"""What estserver does in a second, beside what this machine could do at best in the same run."""
