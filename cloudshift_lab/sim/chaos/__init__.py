"""Real processes killed, frozen and cut off from each other while runs move."""
