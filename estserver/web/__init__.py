"""Pages for people: the enrollment wizard, renewal, and what explains them."""
