"""What people and programs read: text and JSON made of the frozen values, and progress bars. No effects on files."""
