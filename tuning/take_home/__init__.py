"""What a user takes from a study: its best settings and the commands that train with them, models, runs for trackers."""
