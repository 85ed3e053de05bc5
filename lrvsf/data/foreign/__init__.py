"""Files as their owners have them: tables, and pictures as a shop shows them."""
