"""estserver: one invitation, three doors, one signing core."""
