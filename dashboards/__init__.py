"""What people look at: tables and progress drawn from the results store."""
