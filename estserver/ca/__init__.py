"""The certification authority: keys, drafts, lint and signatures. Knows nothing of requests."""
